(() => {
  const { make, drawn, number, small, share, visible, blank, short, turn } =
    latents;
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const cards = new Map(data.latents.map((card) => [card.latent, card]));
  const places = new Map(); // latent -> its link in the list
  const groups = {
    top: "Largest values", 4: "Highest quarter of the range",
    3: "Third quarter", 2: "Second quarter", 1: "Lowest quarter",
  };
  let shown = [], current = null, prompts = null;

  // --- notes, in this browser alone ---
  const key = (latent) => `saejax:${document.title}:${latent}`;
  const held = {};
  function note(latent) {
    try {
      return localStorage.getItem(key(latent)) || "";
    } catch {
      return held[latent] || "";
    }
  }
  function keep(latent, text) {
    held[latent] = text;
    try {
      if (text) localStorage.setItem(key(latent), text);
      else localStorage.removeItem(key(latent));
    } catch { /* storage is off: kept until the page is closed */ }
    places.get(latent).classList.toggle("noted", Boolean(text));
  }

  // --- the list ---
  let texts = null; // latent -> text of its examples, made on first use
  function text(card) {
    texts ||= new Map(data.latents.map((c) => [c.latent,
      c.examples.map((e) => e.tokens.join("")).join("\n").toLowerCase()]));
    return texts.get(card.latent);
  }
  function matches(card, wanted) {
    if (!wanted) return true;
    return String(card.latent) === wanted.replace(/^#/, "")
      || note(card.latent).toLowerCase().includes(wanted)
      || text(card).includes(wanted);
  }
  function entry(card) {
    const top = card.examples[0], first = card.promoted && card.promoted[0];
    const word = top ? short(top.tokens[top.at])
      : card.count === 0 ? "never active" : first ? short(first.token) : "";
    const link = make("a", { href: `#latent=${card.latent}` },
      make("span", { class: "number" }, String(card.latent)),
      make("span", { class: "word" }, word),
      make("span", { class: "share" }, "density" in card
        ? share(card.density)
        : prompts ? number(prompts.largest(card.latent)) : ""));
    link.classList.toggle("noted", Boolean(note(card.latent)));
    return link;
  }
  function list() {
    const wanted = find("search").value.trim().toLowerCase();
    const by = find("order").value;
    shown = data.latents.filter((card) => matches(card, wanted));
    const sizes = {
      prompt: (card) => prompts.largest(card.latent),
      change: (card) => card.ablation ? Math.abs(card.ablation.mean) : 0,
    };
    const size = sizes[by] || ((card) => card[by] || 0);
    if (by !== "latent") shown.sort((a, b) => size(b) - size(a));
    find("list").replaceChildren(...shown.map((c) => places.get(c.latent)));
    find("hits").textContent = `${shown.length} of ${data.latents.length}`;
  }

  // --- the card ---
  function histogram(card) {
    const { first, counts } = card.histogram;
    if (!counts.length) return make("p", { class: "empty" }, "No values.");
    const edge = (bin) => 2 ** (data.lowest + bin / data.per_octave);
    const width = 320, height = 110, step = width / counts.length;
    const most = Math.max(...counts);
    const svg = drawn("svg", {
      viewBox: `0 0 ${width} ${height + 18}`, role: "img",
      "aria-label": "Histogram of the positive values, on a log axis",
    });
    counts.forEach((count, i) => {
      const tall = height * count / most;
      const bar = drawn("rect", {
        x: i * step + .5, y: height - tall,
        width: Math.max(step - 1, .5), height: tall,
      });
      const [low, high] = [edge(first + i), edge(first + i + 1)];
      bar.append(drawn("title", {},
        `${number(low)} to ${number(high)}: ${count} rows`));
      svg.append(bar);
    });
    svg.append(
      drawn("line", { x1: 0, x2: width, y1: height, y2: height }),
      drawn("text", { x: 0, y: height + 14 }, number(edge(first))),
      drawn("text", { x: width / 2, y: height + 14, "text-anchor": "middle" },
        "value (log axis)"),
      drawn("text", { x: width, y: height + 14, "text-anchor": "end" },
        number(edge(first + counts.length))));
    return svg;
  }
  function example(card, e, read) {
    const told = e.attribution && ((span, i) => {
      attribute(span, e.attribution[i], card);
      return `; attribution ${small(e.attribution[i])} nats per token`;
    });
    return latents.example(e, card.max, find("card"), read, told);
  }
  const largest = new Map(); // latent -> its largest attribution
  function attribute(span, amount, card) {
    if (!largest.has(card.latent)) {
      largest.set(card.latent, Math.max(...card.examples.flatMap((e) =>
        (e.attribution || []).map(Math.abs)), 1e-30));
    }
    const share = Math.abs(amount) / largest.get(card.latent);
    span.title += `; attribution ${small(amount)}`;
    if (share < .02) return;
    span.classList.add(amount > 0 ? "raises" : "lowers");
    span.style.borderBottomColor = `rgb(var(${amount > 0 ? "--raises"
      : "--lowers"}) / ${(.25 + .75 * share).toFixed(3)})`;
  }
  function legend(card) {
    if (!card.examples.some((e) => e.attribution)) return [];
    const word = (name, text) => {
      const found = make("b", {}, text);
      found.style.borderBottomColor = `rgb(var(--${name}))`;
      return found;
    };
    return [make("p", { class: "legend" }, "Shading: value of the latent."
      + " Underline: gradient × activation, by which the latent ",
    word("lowers", "lowers"), " or ", word("raises", "raises"),
    " the loss of the window at this token, to first order.")];
  }
  function effects(card) {
    const { measure, tokens, model } = data.effects;
    const unit = measure === "loss" ? "nats per token" : "1 − cosine";
    const what = measure === "loss"
      ? "Change of the next-token loss" : "Change of the embedding";
    const about = `${what} of ${model} where the latent is 0, in windows of`
      + ` ${tokens} tokens; the error of the SAE is kept`;
    const linear = card.ablation.windows.some((w) => "linear" in w);
    const cell = (text, tag = "td") => make(tag, {}, text);
    const names = ["largest value", `change, ${unit}`,
      ...(linear ? ["to first order"] : [])];
    return make("section", {}, make("h3", { title: about },
      `Ablation: ${small(card.ablation.mean)}`),
    make("table", { class: "effects" }, make("tr", {},
      ...names.map((name) => cell(name, "th"))),
    ...card.ablation.windows.map((w) => make("tr", { title: `row ${w.row}` },
      cell(number(w.value)), cell(w.value ? small(w.change) : "inactive"),
      ...(linear ? [cell(w.value ? small(w.linear) : "")] : [])))),
    make("p", { class: "legend" }, `${about}. The mean is over windows`
      + " where the latent is active without the text before."));
  }
  function others(title, found, about) {
    const chips = make("div", { class: "chips" }, ...found.map((other) => {
      const known = cards.has(other.latent);
      return make(known ? "a" : "span", known
        ? { class: "chip", href: `#latent=${other.latent}` }
        : { class: "chip", title: "not on this page" },
        `${other.latent} `, make("small", {}, other.value.toFixed(2)));
    }));
    return make("section", {}, make("h3", { title: about }, title),
      found.length ? chips : make("p", { class: "empty" }, "None."));
  }
  function tokens(title, found) {
    return make("section", {}, make("h3", {}, title),
      make("div", { class: "chips" }, ...found.map((one) =>
        make("span", { class: "chip" },
          one.token.trim() ? `${one.token} ` : `${blank(one.token)} `,
          make("small", {}, number(one.logit))))));
  }
  function facts(card) {
    if (!("count" in card)) return "";
    const items = {
      "active on": share(card.density), rows: card.count.toLocaleString("en"),
      "mean value": number(card.mean), "largest value": number(card.max),
    };
    return make("dl", {}, ...Object.entries(items).map(([name, value]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }
  function show(card) {
    const notes = make("textarea", {
      id: "note", placeholder: "Note", "aria-label": "Note",
    });
    notes.value = note(card.latent);
    notes.addEventListener("input", () => keep(card.latent, notes.value));
    const back = make("button", { type: "button" }, "Previous");
    const on = make("button", { type: "button" }, "Next");
    back.addEventListener("click", () => move(-1));
    on.addEventListener("click", () => move(1));
    const read = make("div", { class: "read", role: "status" });
    const parts = [...(prompts ? [prompts.strips(card.latent)] : []),
      make("div", { class: "title" },
        make("h2", {}, `Latent ${card.latent}`), back, on), facts(card), notes,
    make("div", { class: "parts" },
      ...(card.histogram ? [make("section", {},
        make("h3", {}, "Positive values"), histogram(card))] : []),
      others("Nearest in the decoder", card.nearest, "cosine of decoder rows"),
      ...(card.together ? [others("Active together", card.together,
        "rows of both / geometric mean of the rows of each")] : []),
      ...(card.ablation ? [effects(card)] : []),
      ...(card.promoted ? [tokens("Tokens promoted", card.promoted),
        tokens("Tokens suppressed", card.suppressed)] : []))];
    parts.push(...legend(card));
    let last = null;
    for (const e of card.examples) {
      if (e.group !== last) parts.push(make("h3", {}, groups[e.group]));
      last = e.group;
      parts.push(example(card, e, read));
    }
    if (!card.examples.length) {
      parts.push(make("p", { class: "empty" }, data.store
        ? "Never active on these rows." : "No examples without a store."));
    }
    find("card").replaceChildren(...parts, read);
    find("card").scrollTop = 0;
    unmark();
    current = card.latent;
    places.get(current).setAttribute("aria-current", "true");
    latents.reveal(find("list"), places.get(current));
  }

  function unmark() {
    if (current !== null) places.get(current).removeAttribute("aria-current");
    current = null;
  }

  // --- moving about ---
  function go() {
    const ofToken = prompts && prompts.found(location.hash);
    if (ofToken) {
      unmark();
      find("card").replaceChildren(...ofToken);
      find("card").scrollTop = 0;
      return;
    }
    const wanted = /^#latent=(\d+)$/.exec(location.hash);
    const card = wanted ? cards.get(Number(wanted[1])) : data.latents[0];
    if (card) return show(card);
    find("card").replaceChildren(make("p", { class: "empty" },
      data.latents.length ? `There is no latent ${location.hash.slice(1)}`
        + " on this page." : "No latent was active."));
  }
  function move(by) {
    if (!shown.length) return;
    const at = shown.findIndex((card) => card.latent === current);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1);
    location.hash = `latent=${shown[next].latent}`;
  }
  const keys = {
    j: () => move(1), ArrowDown: () => move(1), ArrowRight: () => move(1),
    k: () => move(-1), ArrowUp: () => move(-1), ArrowLeft: () => move(-1),
    "/": () => find("search").focus(), t: turn,
    n: () => find("note") && find("note").focus(),
  };
  latents.listen(keys);
  find("search").addEventListener("input", list);
  find("order").addEventListener("change", list);
  find("theme").addEventListener("click", turn);
  addEventListener("hashchange", go);

  if (data.prompts) {
    prompts = promptView({ data, make, number, short, visible, blank, cards });
    keys.ArrowRight = () => prompts.move(1);
    keys.ArrowLeft = () => prompts.move(-1);
    find("tokenkeys").hidden = false;
  }
  const option = (name) => find("order").querySelector(`[value=${name}]`);
  option("prompt").hidden = !prompts;
  option("change").hidden = !data.latents.some((card) => card.ablation);
  for (const name of ["density", "max"]) option(name).hidden = !data.store;
  if (prompts) find("order").value = "prompt";
  for (const card of data.latents) places.set(card.latent, entry(card));
  const { name, model, site, split } = data.store || {
    name: "", split: "", ...data.subject };
  find("about").textContent = [
    `${data.latents.length} of ${data.sae.n.toLocaleString("en")} latents`,
    data.store ? `${data.rows.toLocaleString("en")} rows` : "",
    split.replace("_", "-"), [model, site].filter(Boolean).join(", "), name,
  ].filter(Boolean).join(" · ");
  list();
  go();
})();
