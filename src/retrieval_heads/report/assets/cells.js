const WORST_FIRST = ["error", "skipped", "unpaired"];

/** A suite's heatmap with its choices. */
function cellSection(suite) {
  const name = suite.name || "Needle in a haystack";
  const title = suite.kind === "detect" ? `${name}: samples behind the heads` : `${name}: score by ${[suite.sides.x.axis, suite.sides.y.axis].filter(Boolean).join(" and ").replaceAll("_", " ")}`;
  const section = make("section", { "aria-label": title }, make("h2", { textContent: title }));
  const map = new Heatmap(title);
  const chosen = { metric: suite.metric, needle: "", seed: "", arm: "", compare: suite.comparedWith === "reference" && suite.isCompared ? "yes" : "" };
  const below = make("div", {});
  const update = (key) => (value) => {
    chosen[key] = value;
    draw();
  };
  const distinct = (pick) => [...new Set(suite.records.map(pick))];
  const controls = make("div", { className: "controls" });
  if (suite.metrics.length > 1) controls.append(choice("Score", suite.metrics.map((each) => [each, scoreName(each)]), chosen.metric, update("metric")));
  if (suite.isCompared) controls.append(choice("Show", [["", "this run"], ["yes", `change against the ${suite.comparedWith}`]], chosen.compare, update("compare")));
  if (suite.questions.length > 1 && suite.questions[0].needle) {
    const needles = suite.questions.map((asked, index) => [String(index), asked.name || asked.needle.trim().slice(0, 40)]);
    controls.append(choice("Needle", [["", "all, mean"], ...needles], "", update("needle")));
  }
  const seeds = distinct((record) => record.seed || 0).sort((first, second) => first - second);
  if (seeds.length > 1) controls.append(choice("Seed", [["", "all, mean"], ...seeds.map((seed) => [String(seed), String(seed)])], "", update("seed")));
  const arms = distinct((record) => record.arm || "-");
  chosen.arm = ["-", "none"].find((arm) => arms.includes(arm)) || arms[0]; // no mean over arms: they differ by design
  if (arms.length > 1) controls.append(choice("Masked heads", arms.map((arm) => [arm, arm === "-" ? "none" : arm]), chosen.arm, update("arm")));
  if (controls.childElementCount) section.append(controls);
  const charts = make("div", { className: "charts" });
  section.append(map.element, below, map.table, charts);

  function draw() {
    const grid = cellGrid(suite, chosen, map);
    map.show(grid);
    const label = chosen.compare ? `change in ${scoreName(chosen.metric)}` : scoreName(chosen.metric);
    below.replaceChildren(legend(grid, label));
    charts.replaceChildren(...suite.curves.flatMap((each) => curveOf(suite, each, chosen.arm === "-" ? "" : chosen.arm)));
  }
  return [section, draw];
}

/** The mean over an axis, of all needles and seeds. */
function curveOf(suite, { axis, title, lines }, arm) {
  const points = lines[arm];
  if (!points || points.length < 2) return [];
  const chart = lineChart({
    label: `${suiteName(suite)}: mean ${scoreName(suite.metric)} by ${title}`,
    lines: [{ name: "", points }],
    xTitle: capital(title),
    yTitle: `Mean ${scoreName(suite.metric)}`,
    xText: (x) => shownOn({ axis }, x),
    isLog: axis !== "depth" && points[0][0] > 0 && points[points.length - 1][0] / points[0][0] >= 8,
  });
  return [chart];
}

function cellGrid(suite, chosen, map) {
  const xs = inOrder(suite.records.map((record) => record.x));
  const ys = inOrder(suite.records.map((record) => record.y));
  const places = new Map();
  for (const record of suite.records) {
    const fits =
      (chosen.needle === "" || record.question === Number(chosen.needle)) &&
      (chosen.seed === "" || (record.seed || 0) === Number(chosen.seed)) &&
      (chosen.arm === "" || (record.arm || "-") === chosen.arm);
    if (!fits) continue;
    const key = JSON.stringify([record.x, record.y]);
    if (places.has(key)) places.get(key).push(record);
    else places.set(key, [record]);
  }
  const metric = suite.metrics.indexOf(chosen.metric);
  const valueOf = (record) => {
    const now = record.scores[metric] ?? null;
    if (!chosen.compare || now === null) return now;
    const before = record.baseline ? record.baseline[metric] ?? null : null;
    return before === null ? null : now - before;
  };
  const stateOf = (record) => (["error", "skipped"].includes(record.status) ? record.status : "unpaired");
  const cells = ys.map((y) =>
    xs.map((x) => {
      const records = places.get(JSON.stringify([x, y])) || [];
      const values = records.map(valueOf).filter((value) => value !== null);
      if (values.length) return { value: mean(values), partial: values.length < records.length, records };
      const states = records.map(stateOf);
      return { state: WORST_FIRST.find((state) => states.includes(state)) || "missing", records };
    }),
  );
  const values = cells.flat().filter((cell) => !cell.state).map((cell) => Math.abs(cell.value));
  const limit = Math.max(0.1, ...(values.length < 1e5 ? values : [1]));
  const diverging = darkPage.matches ? DATA.colours.differencesOnDark : DATA.colours.differences;
  return {
    rows: ys.map((y) => shownOn(suite.sides.y, y)),
    columns: xs.map((x) => shownOn(suite.sides.x, x)),
    rowTitle: capital(suite.sides.y.title),
    columnTitle: capital(suite.sides.x.title),
    cell: (row, column) => cells[row][column],
    colours: chosen.compare ? diverging : DATA.colours.scores,
    low: chosen.compare ? -limit : 0,
    high: chosen.compare ? limit : 1,
    signed: Boolean(chosen.compare),
    isEdged: true,
    tell(row, column) {
      const { records, value, state } = cells[row][column];
      const title = placeName(suite, xs[column], ys[row]);
      if (!records.length) return [title, "not in the results"];
      const several = records.length > 1 ? `, mean of ${counted(records.length, "record")}` : "";
      const label = scoreName(chosen.metric);
      const shown = state ? LOOKS[state].label : `${chosen.compare ? "change in " : ""}${label} ${score(value, Boolean(chosen.compare))}${several}`;
      const first = records.find((record) => record.characters) || records[0];
      const words = first.answer.map(([, text]) => text).join("").slice(0, 400).trim();
      return [title, shown, words || first.reason || "The answer is empty."];
    },
    open(row, column) {
      const { records } = cells[row][column];
      if (records.length) openRecord(records.map((record) => ({ suite, record })), 0, () => map.element.focus());
    },
  };
}
