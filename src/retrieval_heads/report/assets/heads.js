const TOP_HEADS = 10;

/** A detect suite's heads: layers × heads, every score beside the others, and the table of them all. */
function headSection(found) {
  const title = `${found.name}: heads`;
  const section = make("section", { "aria-label": title }, make("h2", { textContent: title }));
  const names = Object.keys(found.scores);
  const state = { view: 0, score: names[0], sort: names[0], isDown: true, shown: ROWS_AT_FIRST, chosen: null };
  const every = found.views.map((view) => allHeads(view, names));
  const map = new Heatmap(`${title}, mean score by layer and head`);
  const [below, beside, agreement, table] = Array.from({ length: 4 }, () => make("div", {}));
  const spread = make("div", { className: "charts" });
  const definition = make("p", { className: "note" });
  const controls = make("div", { className: "controls" });
  if (names.length > 1) {
    const change = (score) => {
      Object.assign(state, { score, sort: score, isDown: true });
      draw();
    };
    controls.append(choice("Score", names.map((name) => [name, scoreName(name)]), state.score, change));
  }
  if (found.views.length > 1) {
    const change = (view) => {
      Object.assign(state, { view: Number(view), chosen: null, shown: ROWS_AT_FIRST });
      draw();
    };
    controls.append(choice("Heads", found.views.map((view, place) => [String(place), view.label]), "0", change));
  }
  if (controls.childElementCount) section.append(controls);
  section.append(definition, map.element, below, map.table, beside, agreement, spread, make("h3", { textContent: "All heads" }), table);
  const several = names.length > 1 ? sideBySide(found, names) : null;
  if (several) {
    beside.append(make("h3", { textContent: "Scores side by side" }), several.element);
    beside.append(make("p", { className: "note", textContent: `Ringed: the ${TOP_HEADS} best by each score. Colours end at each score's own greatest.` }));
  }

  function draw() {
    const view = shownView();
    const choose = (head) => {
      state.chosen = head;
      drawTable();
      openHead(found, view, head, state.score, () => map.element.focus());
    };
    const grid = headGrid(view, state.score, names, choose);
    map.show(grid);
    const extra = [make("span", { textContent: `▢ the ${Math.min(TOP_HEADS, view.heads.length)} best` })];
    if (grid.marked.length) extra.push(make("span", { textContent: "▌ layer with a sliding window" }));
    const unscored = new Set(view.layers.filter((layer) => !layer.heads).map((layer) => layer.kind));
    if (unscored.size) extra.push(make("span", { textContent: `not scored: layers of ${[...unscored].join(", ")}` }));
    below.replaceChildren(legend(grid, `mean ${scoreName(state.score)}`, extra));
    definition.textContent = [found.scores[state.score].definition, view.group === 1 ? found.intervals : "intervals are of query heads alone"].filter(Boolean).join("; ");
    several?.show(view, choose);
    agreement.replaceChildren(...agreementTable(view, names));
    spread.replaceChildren(distributionChart(found, view, state.score));
    drawTable();
  }
  function shownView() {
    const view = found.views[state.view];
    return { ...view, heads: every[state.view], facts: found.scores, counted: found.counted };
  }
  function open(head, restore) {
    openHead(found, shownView(), head, state.score, restore);
  }
  const drawTable = () => table.replaceChildren(...headTable(found, shownView(), state, names, drawTable, open));
  openers.set(found.name, (layer, head) => {
    const view = { ...found.views[0], heads: every[0], facts: found.scores, counted: found.counted };
    const chosen = every[0].find((each) => each.layer === layer && each.head === head);
    if (chosen) openHead(found, view, chosen, state.score, () => map.element.focus());
  });
  return [section, draw];
}

function allHeads(view, names) {
  const heads = view.layers.flatMap((layer, row) =>
    Array.from({ length: layer.heads }, (_, head) => ({
      row,
      head,
      layer: layer.number,
      values: Object.fromEntries(names.map((name) => [name, view.scores[name].mean[row][head] ?? null])),
      ranks: {},
    })),
  );
  for (const name of names) sorted(heads, name, true).forEach((head, place) => (head.ranks[name] = place + 1));
  return heads;
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

/** What is said of a head: a query head, or the group of those that share a KV head. */
const headName = (view, layer, head) => `Layer ${layer}, ${view.group === 1 ? "head" : "KV head"} ${head}`;

function intervalOf(view, name, row, head) {
  const { low, high } = view.scores[name];
  if (!low || low[row][head] === null || low[row][head] === undefined) return null;
  return [low[row][head], high[row][head]];
}

function headGrid(view, score, names, onOpen) {
  const means = view.scores[score].mean;
  const isSigned = view.facts[score].signed;
  const most = Math.max(...view.layers.map((layer) => layer.heads));
  const best = sorted(view.heads, score, true).filter((head) => head.values[score] > 0).slice(0, TOP_HEADS);
  const sizes = view.heads.map((head) => head.values[score]).filter((value) => value !== null);
  // The paper's own count can pass 1; a scale that ends at the best head shows small scores too.
  const greatest = sizes.reduce((most, value) => Math.max(most, isSigned ? Math.abs(value) : value), 0.1);
  const interval = (name, row, head) => {
    const ends = intervalOf(view, name, row, head);
    if (ends) return ` (95 %: ${ends[0].toFixed(3)} to ${ends[1].toFixed(3)})`;
    return view.counted > 0 && view.group === 1 ? " (95 %: too few)" : "";
  };
  return {
    rows: view.layers.map((layer) => String(layer.number)),
    columns: Array.from({ length: most }, (_, head) => String(head)),
    rowTitle: "Layer",
    columnTitle: view.group === 1 ? "Head" : "KV head",
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
    marked: view.layers.flatMap((layer, row) => (layer.window ? [row] : [])),
    tell(row, head) {
      const layer = view.layers[row];
      if (!layer.heads) return [`Layer ${layer.number}: ${layer.kind}`, "not scored"];
      const kind = layer.kind === "attention" ? "" : `, ${layer.kind}`;
      const title = `${headName(view, layer.number, head)}${kind}${layer.window ? `, sliding window of ${count(layer.window)}` : ""}`;
      const values = names
        .map((name) => [name, view.scores[name].mean[row][head] ?? null])
        .filter(([, value]) => value !== null)
        .sort((first, second) => second[1] - first[1])
        .map(([name, value]) => `${scoreName(name)} ${value.toFixed(3)}${interval(name, row, head)}`);
      return [title, ...(values.length ? [values.join("\n")] : ["not scored"])];
    },
    open(row, head) {
      const chosen = view.heads.find((each) => each.row === row && each.head === head);
      if (chosen) onOpen(chosen);
    },
  };
}
