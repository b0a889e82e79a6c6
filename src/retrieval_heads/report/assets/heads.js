const TOP_HEADS = 10;
const ROWS_AT_FIRST = 20;

/** A detect suite's heads: layers × heads, and the table of them all. */
function headSection(found) {
  const title = `${found.name}: heads`;
  const section = make("section", { "aria-label": title }, make("h2", { textContent: title }));
  const map = new Heatmap(`${title}, mean score by layer and head`);
  const names = Object.keys(found.scores);
  const heads = allHeads(found, names);
  const state = { score: names[0], sort: names[0], isDown: true, shown: ROWS_AT_FIRST, chosen: null };
  const [below, table] = [make("div", {}), make("div", {})];
  const definition = make("p", { className: "note" });
  if (names.length > 1) {
    const change = (value) => {
      Object.assign(state, { score: value, sort: value, isDown: true });
      draw();
    };
    section.append(make("div", { className: "controls" }, choice("Score", names.map((name) => [name, name.replaceAll("_", " ")]), state.score, change)));
  }
  section.append(definition, map.element, below, make("h3", { textContent: "All heads" }), table);

  function draw() {
    const grid = headGrid(found, state, heads, names, (head) => {
      state.chosen = head;
      drawTable();
      table.querySelector("tr.chosen")?.scrollIntoView({ block: "center" });
    });
    map.show(grid);
    const extra = [make("span", { textContent: `▢ the ${Math.min(TOP_HEADS, heads.length)} best` })];
    if (grid.marked.length) extra.push(make("span", { textContent: "▌ layer with a sliding window" }));
    const unscored = new Set(found.layers.filter((layer) => !layer.heads).map((layer) => layer.kind));
    if (unscored.size) extra.push(make("span", { textContent: `not scored: layers of ${[...unscored].join(", ")}` }));
    below.replaceChildren(legend(grid, `mean ${state.score.replaceAll("_", " ")}`, extra));
    definition.textContent = [found.scores[state.score].definition, found.intervals].filter(Boolean).join("; ");
    drawTable();
  }
  const drawTable = () => table.replaceChildren(...headTable(found, state, heads, names, drawTable));
  return [section, draw];
}

function allHeads(found, names) {
  return found.layers.flatMap((layer, row) =>
    Array.from({ length: layer.heads }, (_, head) => ({
      row,
      head,
      layer: layer.number,
      values: Object.fromEntries(names.map((name) => [name, found.scores[name].mean[row][head] ?? null])),
    })),
  );
}

/** Highest first or lowest first; heads without a score last; ties in the order of layer, then head. */
function sorted(heads, key, isDown) {
  const sign = isDown ? -1 : 1;
  const place = (head) => (key === "head" ? head.layer * 100000 + head.head : head.values[key]);
  return [...heads].sort((first, second) => {
    const [left, right] = [place(first), place(second)];
    if (left === null || right === null) return (left === null) - (right === null);
    return sign * (left - right) || first.layer - second.layer || first.head - second.head;
  });
}

function headColours(isSigned) {
  const { heads, headsOnDark, differences, differencesOnDark } = DATA.colours;
  if (isSigned) return darkPage.matches ? differencesOnDark : differences;
  return darkPage.matches ? headsOnDark : heads;
}

function headGrid(found, state, heads, names, onOpen) {
  const means = found.scores[state.score].mean;
  const isSigned = found.scores[state.score].signed;
  const most = Math.max(...found.layers.map((layer) => layer.heads));
  const best = sorted(heads, state.score, true).filter((head) => head.values[state.score] > 0).slice(0, TOP_HEADS);
  const sizes = heads.map((head) => head.values[state.score]).filter((value) => value !== null);
  // The paper's own count can pass 1; a scale that ends at the best head shows small scores too.
  const greatest = Math.max(0.1, ...sizes.map((value) => (isSigned ? Math.abs(value) : value)));
  const interval = (name, row, head) => {
    const [low, high] = [found.scores[name].low[row][head], found.scores[name].high[row][head]];
    if (low === null || low === undefined) return found.counted > 0 ? " (95 %: too few)" : "";
    return ` (95 %: ${low.toFixed(3)} to ${high.toFixed(3)})`;
  };
  return {
    rows: found.layers.map((layer) => String(layer.number)),
    columns: Array.from({ length: most }, (_, head) => String(head)),
    rowTitle: "Layer",
    columnTitle: "Head",
    cell(row, head) {
      const value = means[row][head] ?? null;
      return value === null ? { state: "missing" } : { value };
    },
    colours: headColours(isSigned),
    signed: isSigned,
    low: isSigned ? -greatest : 0,
    high: greatest,
    leastNumber: 0.05, // most heads score near 0: their numbers would hide the few that do not
    rings: best.map((head) => [head.row, head.head]),
    marked: found.layers.flatMap((layer, row) => (layer.window ? [row] : [])),
    tell(row, head) {
      const layer = found.layers[row];
      if (!layer.heads) return [`Layer ${layer.number}: ${layer.kind}`, "not scored"];
      const kind = layer.kind === "attention" ? "" : `, ${layer.kind}`;
      const title = `Layer ${layer.number}, head ${head}${kind}${layer.window ? `, sliding window of ${count(layer.window)}` : ""}`;
      const values = names
        .map((name) => [name, means === found.scores[name].mean, found.scores[name].mean[row][head] ?? null])
        .filter(([, , value]) => value !== null)
        .sort((first, second) => second[1] - first[1])
        .map(([name, , value]) => `${name.replaceAll("_", " ")} ${value.toFixed(3)}${interval(name, row, head)}`);
      return [title, ...(values.length ? [values.join("\n")] : ["not scored"])];
    },
    open: (row, head) => onOpen(heads.find((each) => each.row === row && each.head === head)),
  };
}

function headTable(found, state, heads, names, redraw) {
  const ordered = sorted(heads, state.sort, state.isDown);
  const rank = new Map(sorted(heads, state.score, true).map((head, index) => [head, index + 1]));
  const columns = [["head", "Head"], ...names.map((name) => [name, name.replaceAll("_", " ")])];
  const header = columns.map(([key, label]) => {
    const cell = make("th", { scope: "col" }, make("button", { type: "button", textContent: label }));
    if (state.sort === key) cell.setAttribute("aria-sort", state.isDown ? "descending" : "ascending");
    cell.firstChild.onclick = () => {
      state.isDown = state.sort === key ? !state.isDown : key !== "head";
      state.sort = key;
      redraw();
      [...document.querySelectorAll(`section[aria-label="${CSS.escape(`${found.name}: heads`)}"] th button`)]
        .find((button) => button.textContent === label)
        ?.focus();
    };
    return cell;
  });
  const shown = ordered.slice(0, state.shown);
  if (state.chosen && !shown.includes(state.chosen)) shown.push(state.chosen);
  const rows = shown.map((head) => {
    const isWeak = head.values[found.ranking] < found.threshold;
    return make(
      "tr",
      { className: `${head === state.chosen ? "chosen" : ""} ${isWeak ? "weak" : ""}`.trim() },
      make("td", { textContent: count(rank.get(head)) }),
      make("td", { textContent: `${head.layer}-${head.head}` }),
      ...names.map((name) => scoreCell(found.scores[name], head, name, name === found.ranking)),
    );
  });
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "Rank" }), ...header)),
    make("tbody", {}, ...rows),
  );
  const parts = [make("div", { className: "scroll" }, table)];
  if (ordered.length > state.shown) {
    const grow = (to) => () => {
      state.shown = to;
      redraw();
    };
    parts.push(
      make(
        "div",
        { className: "more" },
        make("button", { type: "button", textContent: "Show 100 more", onclick: grow(state.shown + 100) }),
        make("button", { type: "button", textContent: `Show all ${counted(ordered.length, "head")}`, onclick: grow(Infinity) }),
      ),
    );
  }
  return parts;
}

function scoreCell(scores, head, name, hasInterval) {
  const value = head.values[name];
  if (value === null) return make("td", { textContent: "–" });
  const [low, high] = [scores.low[head.row][head.head], scores.high[head.row][head.head]];
  const interval = hasInterval && low !== null && low !== undefined;
  return make(
    "td",
    {},
    value.toFixed(3),
    interval ? make("span", { className: "interval", textContent: `${low.toFixed(3)} – ${high.toFixed(3)}` }) : null,
  );
}

const sections = [
  ...DATA.suites.filter((suite) => suite.kind !== "detect").map(cellSection),
  ...DATA.heads.map(headSection),
  ...DATA.suites.filter((suite) => suite.kind === "detect").map(cellSection),
];
for (const [section, draw] of sections) {
  document.getElementById("pictures").append(section);
  draw();
}
darkPage.addEventListener("change", () => sections.forEach(([, draw]) => draw()));
