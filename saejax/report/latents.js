"use strict";
// What pages of latents share: elements, numbers and text, light and dark,
// examples, keys.
const latents = (() => {
  // All text is set as text, never as markup.
  function make(tag, attributes, ...children) {
    const element = make.svg
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }
  function drawn(tag, attributes, ...children) {
    make.svg = true;
    const element = make(tag, attributes, ...children);
    make.svg = false;
    return element;
  }
  const number = (value) => Number(value.toPrecision(3)).toString();
  const small = (value) => value && Math.abs(value) < 1e-3
    ? value.toExponential(1) : number(value);
  const share = (value) => `${number(100 * value)} %`;
  const visible = (text) => text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");
  const blank = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥")
    .replace(/\s/g, "␣") || "∅";
  const short = (text) => text.replace(/\s+/g, " ").trim() || blank(text);

  // --- light and dark ---
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme(name) {
    document.documentElement.dataset.theme = name;
  }
  function turn() {
    const now = document.documentElement.dataset.theme;
    const next = now === "dark" ? "light" : "dark";
    theme(next);
    try { localStorage.setItem("saejax:theme", next); } catch { /* off */ }
  }
  let chosen = null;
  try { chosen = localStorage.getItem("saejax:theme"); } catch { /* off */ }
  theme(chosen || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", (event) =>
    theme(event.matches ? "dark" : "light"));

  // --- an example, coloured by values up to `most`; `read` tells a token's, and
  // what `more` says of it ---
  function example(e, most, box, read, more = () => "") {
    const line = make("p", { class: "text" });
    e.tokens.forEach((token, i) => {
      const value = e.values[i], span = make("span", {}, visible(token));
      const strength = Math.min(Math.abs(value) / (most || 1), 1);
      if (value) {
        const hue = value > 0 ? "--hot" : "--cold";
        span.style.background =
          `rgb(var(${hue}) / ${(.12 + .68 * strength).toFixed(3)})`;
      }
      if (i === e.at) span.className = "at";
      span.title = number(value);
      const told = more(span, i);
      span.addEventListener("click", () => {
        for (const old of box.querySelectorAll(".picked")) {
          old.classList.remove("picked");
        }
        span.classList.add("picked");
        read.textContent = `“${short(token)}”: ${number(value)}; example of`
          + ` row ${e.row}, document ${e.doc}, position ${e.pos}${told}`;
      });
      line.append(span);
    });
    return make("div", { class: "example" },
      make("div", { class: "value" }, number(e.value),
        make("small", {}, `doc ${e.doc}`)), line);
  }

  // --- keys -> functions, but not while writing ---
  function listen(keys) {
    document.addEventListener("keydown", (event) => {
      const inside = event.target.closest("input, textarea, select");
      if (event.key === "Escape" && inside) inside.blur();
      if (inside || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!Object.hasOwn(keys, event.key)) return;
      event.preventDefault();
      keys[event.key]();
    });
  }

  // Scrolls a list, where needed, to show one of its links.
  function reveal(box, link) {
    const [top, low] = [link.offsetTop - box.offsetTop, box.clientHeight];
    if (top < box.scrollTop || top > box.scrollTop + low - 30) {
      box.scrollTop = top - low / 2;
    }
  }

  return { make, drawn, number, small, share, visible, blank, short, turn,
    example, listen, reveal };
})();
