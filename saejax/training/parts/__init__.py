"""What recipes are composed of: losses, constraints, rules, schedules."""
