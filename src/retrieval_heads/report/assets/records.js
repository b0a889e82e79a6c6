const RECORDS_AT_FIRST = 20;
const FAILED = ["low", "error", "skipped"];

/** Every record by the name that its address has: its cell, or its place where a file has none or several of a name. */
const addressOf = new Map();
const byAddress = new Map();
DATA.suites.forEach((suite, number) =>
  suite.records.forEach((record, place) => {
    const isTaken = !record.cell || byAddress.has(record.cell);
    const address = isTaken ? `${number}:${record.cell || place}` : record.cell;
    addressOf.set(record, address);
    byAddress.set(address, { suite, record });
  }),
);

opens.cell = (address) => {
  const item = byAddress.get(address);
  if (!item) return;
  const failures = everyRecord().filter(({ record }) => FAILED.includes(record.status));
  const place = failures.findIndex(({ record }) => record === item.record);
  openRecord(...(place < 0 ? [[item], 0] : [failures, place]), () => {});
};

const everyRecord = () => DATA.suites.flatMap((suite) => suite.records.map((record) => ({ suite, record })));
const answerOf = (record) => record.answer.map(([, words]) => words).join("");

/** The list of records: those that failed at first, or what is searched for. */
function recordSection() {
  const items = everyRecord();
  const number = (states) => items.filter(({ record }) => states.includes(record.status)).length;
  const failed = number(FAILED);
  const title = failed ? "Failures" : "Records";
  const section = make("section", { "aria-label": title, className: "records" }, make("h2", { textContent: title }));
  const state = { status: failed ? "failed" : "", suite: "", words: "", shown: RECORDS_AT_FIRST };
  const update = (key) => (value) => {
    Object.assign(state, { [key]: value, shown: RECORDS_AT_FIRST });
    draw();
  };
  const states = Object.entries(STATUS).filter(([status]) => number([status]));
  const statuses = [
    ...(failed ? [["failed", `all that failed (${count(failed)})`]] : []),
    ...states.map(([status, label]) => [status, `${label} (${count(number([status]))})`]),
    ["", `all (${count(items.length)})`],
  ];
  const search = make("input", { type: "search", placeholder: "answer, needle, place …" });
  search.addEventListener("input", () => update("words")(search.value));
  const controls = make("div", { className: "controls" }, choice("Show", statuses, state.status, update("status")));
  if (DATA.suites.length > 1) {
    const suites = DATA.suites.map((suite, place) => [String(place), suiteName(suite)]);
    controls.append(choice("Suite", [["", "all"], ...suites], "", update("suite")));
  }
  controls.append(make("label", {}, "Search", search));
  const found = make("p", { className: "note", role: "status" });
  const list = make("div", {});
  section.append(controls, found, list);
  const texts = new Map();
  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, searched(item));
    return texts.get(item);
  };

  function draw() {
    const words = state.words.toLowerCase().split(/\s+/).filter(Boolean);
    const statuses = state.status === "failed" ? FAILED : [state.status];
    const fitting = items.filter(
      (item) =>
        (!state.status || statuses.includes(item.record.status)) &&
        (!state.suite || item.suite === DATA.suites[Number(state.suite)]) &&
        words.every((word) => textOf(item).includes(word)),
    );
    found.textContent = `${counted(fitting.length, "record")} of ${count(items.length)}`;
    list.replaceChildren(...recordTable(fitting, state, draw));
  }
  return [section, draw];
}

const suiteName = (suite) => (suite.kind === "niah" ? suite.name || "needle in a haystack" : `${suite.name}: ${suite.kind}`);

function searched({ suite, record }) {
  const asked = suite.questions[record.question];
  const said = [placeName(suite, record.x, record.y), asked.name, asked.needle, asked.question, asked.expected];
  said.push(answerOf(record), record.reason, record.cell, record.arm, record.seed && `seed ${record.seed}`);
  return said.filter(Boolean).join("\n").toLowerCase();
}

function recordTable(items, state, redraw) {
  if (!items.length) return [];
  const hasSuites = DATA.suites.length > 1;
  const hasMore = items.some(({ record }) => record.seed || record.arm) || DATA.suites.some((suite) => suite.questions.length > 1);
  const columns = ["Cell", "Score", "What it says", ...(hasMore ? ["Needle, seed"] : []), ...(hasSuites ? ["Suite"] : [])];
  const rows = items.slice(0, state.shown).map(({ suite, record }, place) => {
    const asked = suite.questions[record.question];
    const open = make("button", { type: "button", className: "plain", textContent: placeName(suite, record.x, record.y) || record.cell || "record" });
    open.onclick = () => openRecord(items, place, () => open.focus());
    const value = record.scores[suite.metrics.indexOf(suite.metric)] ?? null;
    const more = [asked.name, record.seed && `seed ${record.seed}`, record.arm].filter(Boolean).join(", ");
    const says = answerOf(record).slice(0, 160).trim() || record.reason || "an empty answer";
    return make(
      "tr",
      {},
      make("td", { className: "cell" }, open),
      make("td", { className: `status ${record.status}`, textContent: value === null ? STATUS[record.status] : score(value) }),
      make("td", { className: "says", dir: "auto", textContent: says }),
      ...(hasMore ? [make("td", { textContent: more })] : []),
      ...(hasSuites ? [make("td", { textContent: suiteName(suite) })] : []),
    );
  });
  const heads = columns.map((textContent) => make("th", { scope: "col", textContent }));
  const table = make("table", { className: "records" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  const parts = [scrolled(table, "Records")];
  if (items.length > state.shown) {
    const more = make("button", { type: "button", textContent: `Show ${count(Math.min(100, items.length - state.shown))} more` });
    more.onclick = () => {
      state.shown += 100;
      redraw();
    };
    parts.push(make("div", { className: "more" }, more));
  }
  return parts;
}
