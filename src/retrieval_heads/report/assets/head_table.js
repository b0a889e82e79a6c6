const ROWS_AT_FIRST = 20;

/** Every head: a column for each score, with the head's rank by it. */
function headTable(found, view, state, names, redraw, open) {
  const ordered = sorted(view.heads, state.sort, state.isDown);
  const columns = [["head", view.group === 1 ? "Head" : "KV head"], ...names.map((name) => [name, scoreName(name)])];
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
      make("td", { textContent: count(head.ranks[state.score]) }),
      make("td", {}, opener(head, open)),
      ...names.map((name) => scoreCell(view, head, name, name === found.ranking)),
    );
  });
  const table = make(
    "table",
    { className: "heads" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col", textContent: "Rank" }), ...header)),
    make("tbody", {}, ...rows),
  );
  const parts = [scrolled(table, `${found.name}: all heads`)];
  if (names.length > 1) parts.unshift(make("p", { className: "note", textContent: `Behind a score stands the head's rank by it; the first column ranks by ${scoreName(state.score)}.` }));
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

function opener(head, open) {
  const button = make("button", { type: "button", className: "plain", textContent: `${head.layer}-${head.head}` });
  button.onclick = () => open(head, () => button.focus());
  return button;
}

function scoreCell(view, head, name, hasInterval) {
  const value = head.values[name];
  if (value === null) return make("td", { textContent: "–" });
  const ends = hasInterval ? intervalOf(view, name, head.row, head.head) : null;
  const rank = Object.keys(head.values).length > 1 ? make("span", { className: "rank", textContent: `#${count(head.ranks[name])}` }) : null;
  return make(
    "td",
    {},
    `${value.toFixed(3).replace("-", "\u2212")} `, // copied, the parts of a cell must not run together
    ends ? make("span", { className: "interval", textContent: `${ends[0].toFixed(3)} – ${ends[1].toFixed(3)}` }) : null,
    ends ? " " : null,
    rank,
  );
}
