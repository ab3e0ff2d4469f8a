// Prompts above the cards: their tokens, and the strongest latents of each.
// `page` has the data and functions of the page around.
function promptView(page) {
  const { data, make, number, short, visible, blank, cards } = page;
  const prompts = data.prompts, strongest = data.strongest || 8;
  const largest = new Map(); // latent -> its largest value in the prompts
  let most = 0;
  for (const prompt of prompts) {
    for (const one of prompt.latents.flat()) {
      const size = Math.abs(one.value);
      largest.set(one.latent, Math.max(size, largest.get(one.latent) || 0));
      most = Math.max(most, size);
    }
  }
  const name = (p, t) => `prompt=${p},${t}`;
  const value = (mine, latent) =>
    (mine.find((one) => one.latent === latent) || { value: 0 }).value;
  function shade(span, amount, scale) {
    if (!amount) return;
    const hue = amount > 0 ? "--hot" : "--cold";
    const strength = Math.min(Math.abs(amount) / (scale || 1), 1);
    span.style.background =
      `rgb(var(${hue}) / ${(.12 + .68 * strength).toFixed(3)})`;
  }
  // Shaded by a latent, or by the strongest of each token.
  function strips(latent, now) {
    return make("section", { class: "strips", "aria-label": "Prompts" },
      ...prompts.map((prompt, p) => {
        const line = make("p", { class: "strip" });
        prompt.tokens.forEach((token, t) => {
          const mine = prompt.latents[t];
          const amount = latent === null
            ? (mine.length ? mine[0].value : 0) : value(mine, latent);
          // A part of a character has no text of its own.
          const span = make("span", {}, visible(token) || "\u00b7");
          shade(span, amount, latent === null ? most : largest.get(latent));
          span.title = prompt.rows[t] ? number(amount) : "no row";
          span.classList.toggle("norow", !prompt.rows[t]);
          span.classList.toggle("now", now === name(p, t));
          span.addEventListener("click", () => { location.hash = name(p, t); });
          line.append(span);
        });
        return line;
      }));
  }
  function context(card) {
    const example = card.examples[0];
    if (!example) return [];
    const line = make("p", { class: "text" });
    example.tokens.forEach((token, i) => {
      const span = make("span", {}, visible(token));
      shade(span, example.values[i], card.max);
      if (i === example.at) span.className = "at";
      line.append(span);
    });
    return [line];
  }
  function entry(one, scale) {
    const card = cards.get(one.latent);
    const bar = make("i", {});
    bar.style.width = `${(5 * Math.abs(one.value) / scale).toFixed(2)}rem`;
    const amount = make("span", { class: "amount" }, bar, number(one.value));
    amount.classList.toggle("below", one.value < 0);
    const words = (card.promoted || []).slice(0, 5).map((word) =>
      make("span", { class: "chip", title: number(word.logit) },
        word.token.trim() ? word.token : blank(word.token)));
    return make("div", { class: "strong" },
      make("a", { href: `#latent=${one.latent}` }, String(one.latent)), amount,
      make("div", { class: "chips" }, ...words), ...context(card));
  }
  function view(p, t) {
    const prompt = prompts[p], mine = prompt.latents[t].slice(0, strongest);
    const parts = [strips(null, name(p, t)), make("div", { class: "title" },
      make("h2", {}, `“${short(prompt.tokens[t])}”`),
      make("small", { class: "empty" }, `token ${t + 1} of `
        + `${prompt.tokens.length}, prompt ${p + 1} of ${prompts.length}`))];
    if (!prompt.rows[t]) {
      parts.push(make("p", { class: "empty" }, "No row: a harvest drops such"
        + " tokens (special, first or of an outlying norm), and the SAE has"
        + " not seen any."));
    } else if (!mine.length) {
      parts.push(make("p", { class: "empty" }, "No latent is active."));
    }
    const scale = mine.length ? Math.abs(mine[0].value) : 1;
    return [...parts, ...mine.map((one) => entry(one, scale))];
  }
  const places = prompts.flatMap((prompt, p) =>
    prompt.tokens.map((_, t) => [p, t]));
  const start =
    Math.max(0, places.findIndex(([p, t]) => prompts[p].rows[t]));
  let now = start;
  return {
    strips: (latent) => strips(latent, null),
    largest: (latent) => largest.get(latent) || 0,
    // The view of an address, or null; of the first row, where there is none.
    found: (hash) => {
      const wanted = /^#prompt=(\d+),(\d+)$/.exec(hash);
      if (hash && !wanted) return null;
      const place = wanted ? places.findIndex(([p, t]) =>
        p === Number(wanted[1]) && t === Number(wanted[2])) : now;
      now = place < 0 ? start : place;
      return view(...places[now]);
    },
    move: (by) => {
      now = Math.min(Math.max(now + by, 0), places.length - 1);
      location.hash = name(...places[now]);
    },
  };
}
