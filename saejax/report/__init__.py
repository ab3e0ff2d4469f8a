"""Numbers into tables, plots and one self-contained page; only here."""
