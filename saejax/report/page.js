// Sorts tables, says which of them scroll, and shows the values of curves.
(() => {
  "use strict";
  const all = (selector, where = document) =>
    [...where.querySelectorAll(selector)];

  // --- tables ---
  function number(text) {
    const plain = text.trim().replace(/[,\s%]/g, "").replace("−", "-");
    return plain === "" || plain === "–" ? NaN : Number(plain);
  }
  function compare(a, b) {
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) && Number.isNaN(y)) {
      return a.localeCompare(b, "en", { numeric: true });
    }
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return x - y;
  }
  const empty = (text) => ["", "–"].includes(text.trim());
  function sort(table, head, column) {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent;
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [text(a), text(b)];
      if (empty(x) || empty(y)) return empty(x) - empty(y); // always last
      return up ? compare(x, y) : compare(y, x);
    });
    body.append(...rows);
  }
  for (const table of all("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    all("th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "Sort";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }
  function measure() {
    for (const box of all(".scroll")) {
      const scrolls = box.scrollWidth > box.clientWidth + 1;
      box.previousElementSibling.classList.toggle("now", scrolls);
      box.tabIndex = scrolls ? 0 : -1;
    }
  }
  document.documentElement.classList.add("measured");
  addEventListener("resize", measure);
  addEventListener("toggle", measure, true); // of details, which open
  measure();

  // --- figures ---
  const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  function written(value) {
    return value && Math.abs(value) < 1e-4
      ? value.toExponential(2) : digits.format(value).replace("-", "−");
  }
  const bare = (label) => label.replace(/ \(.*\)$/, "");

  // The points of the SVG that is shown, with their places in its units.
  function places(data, narrow) {
    const found = [];
    data.panels.forEach((panel) => {
      const [left, top, width, height, ...ends] = panel.boxes[narrow ? 1 : 0];
      const along = (value, log, low, high) => log
        ? Math.log(value / low) / Math.log(high / low)
        : (value - low) / (high - low);
      panel.curves.forEach((curve, i) => curve.x.forEach((x, j) => {
        const u = along(x, panel.log[0], ends[0], ends[1]);
        const v = along(curve.y[j], panel.log[1], ends[2], ends[3]);
        if (!(u >= -.001 && u <= 1.001 && v >= -.001 && v <= 1.001)) return;
        found.push({
          panel, curve, x, y: curve.y[j], line: `${panel.title}/${i}`,
          left: left + u * width, top: top + (1 - v) * height,
        });
      }));
    });
    return found;
  }
  function figure(element) {
    const data = JSON.parse(element.querySelector("script").textContent);
    if (!data.panels.length) return;
    const box = element.querySelector(".drawing");
    const tip = document.createElement("div"), ring = document.createElement("div");
    tip.className = "tip";
    tip.setAttribute("role", "status");
    ring.className = "ring";
    let points = [], svg = null, current = -1;

    function shown() {
      const now = all("svg", box).find((s) => s.getClientRects().length);
      if (now !== svg) {
        svg = now;
        points = svg ? places(data, svg.closest(".at-phone")) : [];
        current = -1;
      }
      return svg;
    }
    function say(at) {
      current = at;
      const { panel, curve, x, y, left, top } = points[at];
      const scale = svg.clientWidth / svg.viewBox.baseVal.width
        || svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      const [name, given] = curve.name.split("|");
      const title = document.createElement("b");
      title.textContent = [panel.title, name].filter(Boolean).join(", ");
      const line = (label, value) => {
        const part = document.createElement("div");
        part.textContent = `${bare(label)}: ${value}`;
        return part;
      };
      tip.replaceChildren(title, line(panel.x, given ?? written(x)),
        line(panel.y, written(y)));
      box.append(ring, tip);
      const [px, py] = [left * scale, top * scale];
      ring.style.left = `${px}px`;
      ring.style.top = `${py}px`;
      const room = box.clientWidth - tip.offsetWidth;
      const right = px + 14 + tip.offsetWidth <= box.clientWidth;
      tip.style.left = `${Math.max(0, Math.min(right ? px + 14
        : px - 14 - tip.offsetWidth, room))}px`;
      tip.style.top = `${Math.max(0, py - tip.offsetHeight - 10)}px`;
    }
    function hide() {
      tip.remove();
      ring.remove();
      current = -1;
    }
    function near(event) {
      if (!shown()) return;
      const rect = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / rect.width;
      const [x, y] = [(event.clientX - rect.left) * scale,
        (event.clientY - rect.top) * scale];
      let best = -1, least = 24 * 24;
      points.forEach((p, i) => {
        const away = (p.left - x) ** 2 + (p.top - y) ** 2;
        if (away < least) [best, least] = [i, away];
      });
      if (best < 0) hide(); else if (best !== current) say(best);
    }
    // Left and right go along a curve, up and down to the next one.
    function step(by, along) {
      if (!shown() || !points.length) return;
      if (current < 0) return say(0);
      const here = points[current];
      if (along) {
        const next = points[current + by];
        if (next && next.line === here.line) say(current + by);
        return;
      }
      const lines = [...new Set(points.map((p) => p.line))];
      const line = lines[lines.indexOf(here.line) + by];
      const mine = points.map((p, i) => i).filter((i) => points[i].line === line);
      if (!mine.length) return;
      say(mine.reduce((a, b) => Math.abs(points[a].left - here.left)
        <= Math.abs(points[b].left - here.left) ? a : b));
    }
    const keys = {
      ArrowRight: () => step(1, true), ArrowLeft: () => step(-1, true),
      ArrowDown: () => step(1, false), ArrowUp: () => step(-1, false),
      Escape: hide,
    };
    box.tabIndex = 0;
    box.addEventListener("pointermove", near);
    box.addEventListener("pointerdown", near);
    box.addEventListener("pointerleave", hide);
    box.addEventListener("blur", hide);
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (!Object.hasOwn(keys, event.key)) return;
      event.preventDefault();
      keys[event.key]();
    });
    addEventListener("resize", hide);
  }
  all("figure.plot").forEach(figure);
})();
