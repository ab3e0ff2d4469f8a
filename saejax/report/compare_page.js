(() => {
  const { make, drawn, number, share, short, turn } = latents;
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const flip = (side) => side === "a" ? "b" : "a";
  const cards = Object.fromEntries(Object.entries(data.latents).map(
    ([side, some]) => [side, new Map(some.map((c) => [c.latent, c]))]));
  const kinds = {
    matched: "Matched", split: "Split", absorbed: "Absorbed",
    unmatched: "Unmatched",
  };
  const roles = {
    match: "pair", part: "part", main: "main", specific: "specific",
    near: "nearest",
  };
  const items = data.items.map((item) =>
    ({ ...item, id: `${item.kind}=${item.side}${item.latent}` }));
  const byId = new Map(items.map((item) => [item.id, item]));
  const entries = new Map(); // "a17" -> the entries that it is in
  for (const item of items) {
    for (const name of names(item)) {
      if (!entries.has(name)) entries.set(name, []);
      entries.get(name).push(item);
    }
  }
  const places = new Map(); // entry -> its link in the list
  let shown = [], current = null;

  // The latents of an entry, as "a17".
  function names(item) {
    return [`${item.side}${item.latent}`,
      ...item.members.map((m) => `${flip(item.side)}${m.latent}`)];
  }
  const card = (name) => cards[name[0]].get(Number(name.slice(1)));
  const badge = (side) =>
    make("span", { class: `side ${side}` }, side.toUpperCase());
  const whole = (value) => value.toLocaleString("en");
  const maybe = (value, text) => value === undefined ? "–" : text(value);
  const fixed = (value) => value.toFixed(2);

  // --- the list ---
  let texts = null; // "a17" -> text of its examples, made on first use
  function text(name) {
    texts ||= new Map([...entries.keys()].map((key) => [key,
      card(key).examples.map((e) => e.tokens.join("")).join("\n")
        .toLowerCase()]));
    return texts.get(name);
  }
  function matches(item, wanted) {
    return !wanted || names(item).some((name) => name === wanted
      || name.slice(1) === wanted || text(name).includes(wanted));
  }
  function value(item, by) {
    if (by === "density") {
      return card(`${item.side}${item.latent}`).density;
    }
    return item.members[0]?.[by] ?? -2;
  }
  function entry(item) {
    const top = card(names(item)[0]).examples[0];
    const others = item.members.map((m) => m.latent).join(", ");
    const pair = make("span", { class: "pair" }, badge(item.side),
      ` ${item.latent}`);
    pair.append(item.kind === "matched" ? ` · ${others}` : "");
    const kind = item.kind === "matched" ? ""
      : make("small", {}, `${item.kind} `);
    return make("a", { href: `#${item.id}` }, pair,
      make("span", { class: "word" }, kind, top ? short(top.tokens[top.at]) : ""),
      make("span", { class: "share" },
        maybe(item.members[0]?.cosine, fixed)));
  }
  function list() {
    const wanted = find("search").value.trim().toLowerCase();
    const [kind, side] = find("kind").value.split(" ");
    const by = find("order").value;
    shown = items.filter((item) => (!kind || item.kind === kind)
      && (!side || item.side === side) && matches(item, wanted));
    shown.sort((x, y) => by === "latent"
      ? x.side.localeCompare(y.side) || x.latent - y.latent
      : value(y, by) - value(x, by));
    find("list").replaceChildren(...shown.map((item) => places.get(item.id)));
    find("hits").textContent = `${shown.length} of ${items.length}`;
  }
  function choices() {
    const some = [["", "all"]];
    for (const kind of Object.keys(kinds)) {
      const sides = kind === "matched" ? ["a"] : ["a", "b"];
      for (const side of sides) {
        const name = kind === "matched" ? "matched"
          : `${kind} of ${side.toUpperCase()}`;
        some.push([`${kind} ${side}`,
          `${name} (${whole(data.saes[side].kinds[kind])})`]);
      }
    }
    find("kind").append(...some.map(([key, name]) =>
      make("option", { value: key }, name)));
  }

  // --- the summary ---
  function table(head, rows) {
    const line = (cells, tag) => make("tr", {}, ...cells.map((cell) =>
      make(tag, {}, cell instanceof Node ? cell : String(cell))));
    return make("div", { class: "wide" }, make("table", {},
      make("thead", {}, line(head, "th")),
      make("tbody", {}, ...rows.map((row) => line(row, "td")))));
  }
  function about() {
    const [a, b] = [data.saes.a, data.saes.b];
    const row = (name, text) => [name, text(a), text(b)];
    const prep = (sae) => /^Row/.test(sae.prep) ? `${sae.prep} ¹` : sae.prep;
    return table(["", badge("a"), badge("b")], [
      row("name", (sae) => sae.name),
      row("latents n", (sae) => whole(sae.n)),
      row("activation", (sae) => sae.activation),
      row("prep", prep),
      row("active on some row", (sae) => whole(sae.live)),
      row("L0", (sae) => number(sae.l0)),
      row("FVU", (sae) => sae.fvu.toFixed(4)),
    ]);
  }
  function difference() {
    const { effect, low, high } = data.fvu_difference;
    const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(4);
    const interval = low === undefined ? "no interval with one document"
      : `95 % interval ${signed(low)} to ${signed(high)}`;
    return make("p", { class: "lead", id: "difference" },
      `FVU of A − FVU of B on the same ${whole(data.rows)} rows: `
      + `${signed(effect)}, ${interval} (paired bootstrap over `
      + `${whole(data.documents)} documents).`);
  }
  function overlap() {
    const m = data.match, tau = data.rules.tau;
    const both = m.both === undefined ? "" : ` Where decoder and encoder rows`
      + ` must have the same partner and a mean cosine above ${tau}:`
      + ` ${whole(m.both)}.`;
    const how = m.method === "exact"
      ? "one-to-one assignment of the largest sum of cosines (Hungarian)"
      : "mutual nearest neighbours, a lower bound";
    return make("p", { class: "lead", id: "overlap" },
      `${whole(m.shared)} of ${whole(m.pairs)} pairs have a cosine of decoder`
      + ` rows above ${tau}: ${share(m.share.a)} of the live latents of A,`
      + ` ${share(m.share.b)} of B; ${how}.${both} With a shuffled decoder in`
      + ` place of B: ${whole(m.null_shared)}.`);
  }
  // Runs with equal initial weights match by number, whatever they learnt.
  function warning() {
    const { same_number: same, shared } = data.match;
    if (same < 5 || same < .05 * shared) return [];
    return [make("p", { class: "lead warning" },
      `${whole(same)} of these pairs are of latents of equal numbers: the SAEs`
      + " seem to have had equal initial weights in part, as runs of one seed"
      + " do, and the overlap is higher for it. Compare SAEs of other seeds.")];
  }
  function histogram() {
    const { edges, counts } = data.match, none = data.match.null;
    const first = Math.max(0, [...counts.keys()].findIndex((i) =>
      counts[i] || none[i]) - 1);
    const width = 640, height = 180, low = edges[first];
    const step = width / (counts.length - first);
    const most = Math.max(1, ...counts, ...none);
    const x = (value) => width * (value - low) / (edges.at(-1) - low);
    const tall = (count) => height * count / most;
    const svg = drawn("svg", {
      viewBox: `0 0 ${width} ${height + 20}`, role: "img",
      "aria-label": "Histogram of the cosines of matched pairs",
    });
    let path = "";
    counts.forEach((count, i) => {
      if (i < first) return;
      const bar = drawn("rect", {
        x: x(edges[i]) + .5, y: height - tall(count),
        width: Math.max(step - 1, .5), height: tall(count),
      });
      bar.append(drawn("title", {}, `${edges[i]} to ${edges[i + 1]}: `
        + `${count} pairs, ${none[i]} with a shuffled decoder`));
      svg.append(bar);
      path += `${path ? "L" : "M"}${x(edges[i])} ${height - tall(none[i])}`
        + `H${x(edges[i + 1])}`;
    });
    const tau = x(data.rules.tau);
    svg.append(drawn("path", { class: "null", d: path }),
      drawn("line", { class: "tau", x1: tau, x2: tau, y1: 0, y2: height }),
      drawn("line", { x1: 0, x2: width, y1: height, y2: height }),
      drawn("text", { x: tau, y: height + 15, "text-anchor": "middle" },
        String(data.rules.tau)),
      drawn("text", { x: 0, y: height + 15 }, String(low)),
      drawn("text", { x: width / 3, y: height + 15, "text-anchor": "middle" },
        "cosine of decoder rows"),
      drawn("text", { x: width, y: height + 15, "text-anchor": "end" }, "1"));
    return make("div", { class: "figure" }, svg, make("p", { class: "legend" },
      make("i"), " pairs  ", make("i", { class: "null" }),
      " pairs with a shuffled decoder in place of B"));
  }
  function counts() {
    const { cover, cosine, near } = data.rules;
    const row = (kind, text) => [text,
      ...["a", "b"].map((side) => {
        const n = data.saes[side].kinds[kind];
        const first = items.find((i) => i.kind === kind
          && (i.side === side || kind === "matched"));
        return first ? make("a", { href: `#${first.id}` }, whole(n)) : whole(n);
      })];
    return make("div", {}, table(["live latents", badge("a"), badge("b")], [
      row("matched", `matched, cosine above ${data.rules.tau}`),
      row("split", "split in the other SAE"),
      row("part", "part of a split one of the other"),
      row("absorbed", "absorbed in the other SAE"),
      row("unmatched", "unmatched: none of these"),
    ]), make("p", { class: "lead legend" },
      `A latent is split if several latents of the other SAE with cosines of at`
      + ` least ${cosine} cover ${share(cover)} of its rows and none does alone;`
      + ` absorbed if its nearest one misses rows on which more specific ones`
      + ` stand in. Of each latent the ${near} nearest of the other SAE were`
      + ` looked at. A latent may be matched and split, or matched and absorbed.`
      + ` The page has ${whole(items.length)} entries, drawn at random where a`
      + ` kind has more.`));
  }
  function summary() {
    const sections = [make("h2", {}, "Summary"), about(), difference(),
      make("h3", {}, "Overlap"), overlap(), ...warning(), histogram(),
      make("h3", {}, "Kinds of latents"), counts()];
    if (Object.values(data.saes).some((sae) => /^Row/.test(sae.prep))) {
      sections.push(make("p", { class: "legend" }, "¹ The prep divides each row"
        + " by a number of its own, which decoder rows of unit norm leave out."));
    }
    fill("#summary", sections);
  }

  // --- an entry ---
  const words = {
    matched: () => "A pair of the one-to-one assignment.",
    split: (item) => `The parts cover ${share(item.covered)} of its rows, and`
      + " none does alone.",
    absorbed: (item) => {
      const [main, ...rest] = item.members;
      const added = rest.reduce((sum, m) => sum + m.added, 0);
      return `The main latent is active on ${share(main.covers)} of its rows;`
        + ` on ${share(added)} it is not, and specific ones are.`;
    },
    unmatched: () => "No pair above the threshold, no family. Beside it are the"
      + " nearest latents.",
  };
  function members(item) {
    const side = item.side.toUpperCase(), other = flip(item.side);
    const head = ["", "role", "cosine", "correlation",
      `active on rows of ${side} ${item.latent}`,
      `its rows with ${side} ${item.latent}`, "rows of both"];
    return table(head, item.members.map((m) => [
      make("span", {}, badge(other), ` ${m.latent}`), roles[m.role],
      fixed(m.cosine), maybe(m.correlation, fixed), maybe(m.covers, share),
      maybe(m.inside, share), maybe(m.both, whole)]));
  }
  function column(side, numbers, read) {
    const parts = numbers.flatMap((latent) => {
      const one = cards[side].get(latent);
      return [make("h3", {}, badge(side), ` ${latent} `, make("small", {},
        `active on ${share(one.density)}, largest ${number(one.max)}`)),
        ...one.examples.map((e) =>
          latents.example(e, one.max, find("card"), read))];
    });
    return make("section", { class: `column ${side}` }, ...parts);
  }
  function also(item) {
    const more = [...new Set(names(item).flatMap((name) => entries.get(name)))]
      .filter((other) => other !== item);
    if (!more.length) return [];
    return [make("p", { class: "chips also" }, "Also: ", ...more.map((other) =>
      make("a", { class: "chip", href: `#${other.id}` },
        `${kinds[other.kind].toLowerCase()} ${other.side.toUpperCase()} `
        + `${other.latent}`)))];
  }
  function show(item) {
    const back = make("button", { type: "button" }, "Previous");
    const on = make("button", { type: "button" }, "Next");
    back.addEventListener("click", () => move(-1));
    on.addEventListener("click", () => move(1));
    const read = make("div", { class: "read", role: "status" });
    const numbers = {
      [item.side]: [item.latent],
      [flip(item.side)]: item.members.map((m) => m.latent),
    };
    const title = `${kinds[item.kind]}: ${item.side.toUpperCase()} `
      + item.latent + (item.kind === "matched"
      ? ` and ${flip(item.side).toUpperCase()} ${item.members[0].latent}` : "");
    fill(`#${item.id}`, [
      make("div", { class: "title" }, make("h2", {}, title), back, on),
      make("p", { class: "lead" }, words[item.kind](item)), ...also(item),
      members(item), make("div", { class: "beside" },
        column("a", numbers.a, read), column("b", numbers.b, read)), read]);
  }
  function fill(hash, parts) {
    find("card").replaceChildren(...parts);
    find("card").scrollTop = 0;
    for (const old of document.querySelectorAll("nav [aria-current]")) {
      old.removeAttribute("aria-current");
    }
    current = hash.slice(1);
    const link = places.get(current) || find("home");
    link.setAttribute("aria-current", "true");
    if (link !== find("home") && link.isConnected) {
      latents.reveal(find("list"), link);
    }
  }

  // --- moving about ---
  function go() {
    const wanted = decodeURIComponent(location.hash.slice(1)).toLowerCase();
    const item = byId.get(wanted) || entries.get(wanted)?.[0];
    if (item) return show(item);
    if (!wanted || wanted === "summary") return summary();
    current = null;
    find("card").replaceChildren(make("p", { class: "empty" },
      `There is no entry ${wanted} on this page.`));
  }
  function move(by) {
    if (!shown.length) return;
    const at = shown.findIndex((item) => item.id === current);
    const next = at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1);
    location.hash = shown[next].id;
  }
  latents.listen({
    j: () => move(1), ArrowDown: () => move(1), ArrowRight: () => move(1),
    k: () => move(-1), ArrowUp: () => move(-1), ArrowLeft: () => move(-1),
    "/": () => find("search").focus(), t: turn,
    s: () => { location.hash = "summary"; },
  });
  find("search").addEventListener("input", list);
  for (const id of ["kind", "order"]) {
    find(id).addEventListener("change", list);
  }
  find("theme").addEventListener("click", turn);
  addEventListener("hashchange", go);

  for (const item of items) places.set(item.id, entry(item));
  const { name, model, site, split } = data.store;
  find("about").textContent = [`${whole(data.rows)} rows`,
    split.replace("_", "-"), [model, site].filter(Boolean).join(", "), name,
  ].filter(Boolean).join(" · ");
  choices();
  list();
  go();
})();
