/** Small maps of every score, one beside the other. */
function sideBySide(found, names) {
  const maps = names.map((name) => {
    const map = new Heatmap(`${found.name}: ${scoreName(name)} by layer and head`);
    const below = make("div", {});
    const figure = make("div", { className: "multiple" }, make("h4", { textContent: scoreName(name) }), map.element, below);
    return { name, map, below, figure };
  });
  const element = make("div", { className: "multiples" }, ...maps.map((each) => each.figure));
  const show = (view, onOpen) => {
    for (const { name, map, below } of maps) {
      const grid = { ...headGrid(view, name, names, onOpen), isSmall: true };
      map.show(grid);
      below.replaceChildren(legend(grid, ""));
    }
  };
  return { element, show };
}

/** How far the scores agree: rank correlation on one side of the diagonal, overlap of the best heads on the other. */
function agreementTable(view, names) {
  if (!view.agreement.length) return [];
  const between = new Map(view.agreement.flatMap(([one, other, ...told]) => [[`${one} ${other}`, told], [`${other} ${one}`, told]]));
  const cell = (row, column) => {
    if (row === column) return make("td", { className: "same", textContent: "·" });
    const [overlap, correlation, ranked] = between.get(`${names[row]} ${names[column]}`) || [null, null, 0];
    const isOverlap = column > row;
    const value = isOverlap ? overlap : correlation;
    const text = value === null ? "–" : isOverlap ? `${Math.round(100 * value)} %` : value.toFixed(2).replace("-", "\u2212");
    const said = isOverlap ? `of the ${TOP_HEADS} best in common` : `rank correlation over ${counted(ranked, "head")}`;
    return make("td", { className: isOverlap ? "overlap" : "", textContent: text, title: said });
  };
  const head = (textContent, scope) => make("th", { scope, textContent });
  const rows = names.map((name, row) => make("tr", {}, head(scoreName(name), "row"), ...names.map((_, column) => cell(row, column))));
  const table = make(
    "table",
    { className: "arms agreement" },
    make("thead", {}, make("tr", {}, make("td", {}), ...names.map((name) => head(scoreName(name), "col")))),
    make("tbody", {}, ...rows),
  );
  const kinds = view.group === 1 ? "heads" : "KV heads";
  const note = `Above the diagonal: ${kinds} in common among the ${TOP_HEADS} best by either score. Below it: Spearman's rank correlation over ${kinds} above 0 by both. “retrieval-heads heads agree” tells their intervals over samples.`;
  return [make("h3", { textContent: "How far the scores agree" }), scrolled(table, "Agreement of scores"), make("p", { className: "note", textContent: note })];
}
