const dialog = document.getElementById("record");
const ANSWER_SHOWN = 4000;
const STATUS = { pass: "retrieved", low: "not retrieved", skipped: "skipped", error: "in error" };

dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

/** Open a record; `items` ({suite, record}) are leafed through. */
function openRecord(items, index, restore) {
  const { suite, record } = items[index];
  const step = (to) => openRecord(items, (to + items.length) % items.length, restore);
  openDialog({
    title: placeName(suite, record.x, record.y) || record.cell || "Record",
    beside: make("span", { className: `status ${record.status}`, textContent: STATUS[record.status] || record.status }),
    turns: items.length > 1 ? [index, items.length, "record", step] : null,
    body: recordBody(suite, record),
    address: ["cell", addressOf.get(record)],
    restore,
  });
}

/** Show something in the page's one dialog; `turns` ([index, total, what it is, step]) where it is one of several. */
function openDialog({ title, beside, turns, body, address, restore }) {
  const [index, total, noun, step] = turns || [];
  const turn = (label, text, to) => make("button", { type: "button", "aria-label": label, textContent: text, onclick: () => step(to) });
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });
  dialog.replaceChildren(
    make(
      "div",
      { className: "bar" },
      make("h2", { id: "record-title", textContent: title }),
      beside,
      ...(turns
        ? [
            turn(`Previous ${noun}`, "‹", index - 1),
            make("span", { className: "note", textContent: `${count(index + 1)} of ${count(total)}` }),
            turn(`Next ${noun}`, "›", index + 1),
          ]
        : []),
      close,
    ),
    make("div", { className: "body" }, ...body),
  );
  dialog.onkeydown = (event) => {
    if (!turns || event.target.closest("input, select, .heatmap")) return;
    if (event.key === "ArrowLeft") step(index - 1);
    if (event.key === "ArrowRight") step(index + 1);
  };
  dialog.onclose = () => {
    setAddress();
    restore();
  };
  setAddress(...address);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  close.focus();
}

function recordBody(suite, record) {
  const asked = suite.questions[record.question];
  const parts = [];
  const part = (name, ...children) => parts.push(make("h3", { textContent: name }), ...children);
  const text = (words) => make("p", { className: "said", dir: "auto", textContent: words });
  if (record.reason) parts.push(make("p", { className: "warning", textContent: record.reason }));
  if (asked.question) part("Question", text(asked.question));
  part("Expected answer", text(asked.expected || asked.needle.trim()));
  if (record.thoughts !== undefined) parts.push(thoughts(record));
  if (record.characters) part("Answer", answerText(record), answerNote(record));
  else if (record.status === "pass" || record.status === "low") part("Answer", make("p", { className: "note", textContent: "The answer is empty." }));
  if (asked.needle) part("Needle in its context", ...needlePlace(asked, record));
  if (record.inserted) part("Texts in the context", insertedTexts(record));
  if (record.scores.some((value) => value !== null)) part("Scores", scoreTable(suite, record));
  part("Request", facts(record, asked));
  return parts;
}

/** What a reasoning model said before its answer, folded. */
function thoughts(record) {
  const length = record.thoughtTokens ? `${count(record.thoughtTokens)} tokens` : `${count(record.thoughts.length)} characters`;
  return make(
    "details",
    {},
    make("summary", { textContent: `Thoughts before the answer: ${length}, not scored` }),
    make("p", { className: "said long", dir: "auto", tabIndex: 0, textContent: record.thoughts }),
  );
}

/** The answer with its matched words marked; a long one at first in part. */
function answerText(record) {
  const body = make("p", { className: "said long", dir: "auto", tabIndex: 0 });
  const fill = (limit) => {
    let left = limit;
    body.replaceChildren();
    for (const [mark, words] of record.answer) {
      if (left <= 0) break;
      const shown = words.slice(0, left);
      left -= shown.length;
      body.append(mark ? make("mark", { className: mark === 1 ? "echo" : "", textContent: shown }) : shown);
    }
  };
  fill(ANSWER_SHOWN);
  const held = record.answer.reduce((sum, [, words]) => sum + words.length, 0);
  if (held <= ANSWER_SHOWN) return body;
  const rest = make("button", { type: "button", textContent: `Show ${count(held - ANSWER_SHOWN)} more characters` });
  rest.onclick = () => {
    fill(Infinity);
    rest.remove();
    body.focus();
  };
  return make("div", {}, body, rest);
}

function answerNote(record) {
  const marks = new Set(record.answer.map(([mark]) => mark));
  const held = record.answer.reduce((sum, [, words]) => sum + [...words].length, 0);
  const said = [];
  if (marks.has(2)) said.push(make("span", {}, make("mark", { textContent: "expected" }), " word of the expected answer"));
  if (marks.has(1)) said.push(make("span", {}, make("mark", { className: "echo", textContent: "echoed" }), " expected, but the question says it too or it tells nothing, like “and”"));
  if (held < record.characters) said.push(make("span", {}, `The answer has ${count(record.characters)} characters; results.jsonl holds them all.`));
  if (record.finish === "length") said.push(make("span", {}, "It was cut at the token budget."));
  return make("p", { className: "note key" }, ...said);
}

function needlePlace(asked, record) {
  const depth = record.y;
  const at = record.achieved ?? depth;
  const mark = make("i", {});
  mark.style.left = `${at}%`;
  const bar = make("div", { className: "place", role: "img", "aria-label": `The needle stands ${plain(at)} % into the context.` }, mark);
  const where = [`${plain(Math.round(at * 10) / 10)} % of the haystack stands before it`];
  if (record.achieved !== undefined && Math.abs(record.achieved - depth) >= 0.05) where[0] += ` (${plain(depth)} % requested)`;
  if (record.needleSpan) where.push(`tokens ${count(record.needleSpan[0])} to ${count(record.needleSpan[1] - 1)} of the prompt`);
  const [before, after] = record.around || ["", ""];
  const inserted = asked.needle.trim();
  // A needle without white space around it was inserted on a line of its own.
  const margin = asked.needle === inserted ? "\n" : "";
  const lead = asked.needle.slice(0, asked.needle.length - asked.needle.trimStart().length) || margin;
  const tail = asked.needle.slice(asked.needle.trimEnd().length) || margin;
  const around = make(
    "p",
    { className: "said", dir: "auto" },
    before ? `… ${before}${lead}` : "",
    make("mark", { className: "needle", textContent: inserted }),
    after ? `${tail}${after} …` : "",
  );
  return [bar, make("p", { className: "note", textContent: where.join("; ") }), around];
}

/** What stands in a context with several texts: those that are asked for first. */
function insertedTexts(record) {
  const rows = record.inserted.map(([role, words, depth]) =>
    make("tr", {}, make("td", { textContent: role }), make("td", { textContent: `${plain(depth)} %` }), make("td", { dir: "auto", textContent: words })),
  );
  const heads = ["Role", "Depth", "Text"].map((textContent) => make("th", { scope: "col", textContent }));
  return make("div", { className: "scroll" }, make("table", { className: "scores" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)));
}

/** A row for each kind of score, with all words and without the question's. */
function scoreTable(suite, record) {
  const kinds = [...new Set(suite.metrics.map((name) => name.replace(/_novel$/, "")))];
  const cell = (name) => {
    const index = suite.metrics.indexOf(name);
    const value = record.scores[index] ?? null;
    if (value === null) return make("td", {});
    const before = record.baseline ? record.baseline[index] ?? null : null;
    const counts = name === suite.metric && suite.threshold !== null;
    return make(
      "td",
      { className: name === suite.metric ? "deciding" : "" },
      value.toFixed(3),
      before !== null ? make("span", { className: "interval", textContent: score(value - before, true) }) : null,
      counts ? make("span", { className: "interval", textContent: `above ${plain(suite.threshold)} passes` }) : null,
    );
  };
  const hasNovel = suite.metrics.some((name) => name.endsWith("_novel"));
  const heads = ["Score", "All words", ...(hasNovel ? ["Words not in the question"] : [])];
  const table = make(
    "table",
    { className: "scores" },
    make("thead", {}, make("tr", {}, ...heads.map((textContent) => make("th", { scope: "col", textContent })))),
    make(
      "tbody",
      {},
      ...kinds.map((kind) =>
        make("tr", {}, make("td", { textContent: scoreName(kind) }), cell(kind), ...(hasNovel ? [cell(`${kind}_novel`)] : [])),
      ),
    ),
  );
  return make("div", { className: "scroll" }, table);
}

function facts(record, asked) {
  const said = {
    Needle: asked.name,
    "Must be said": asked.span,
    Seed: record.seed,
    "Masked heads": record.arm,
    "Prompt tokens": record.promptTokens && count(record.promptTokens),
    "Of these cached": record.cachedTokens !== undefined ? count(record.cachedTokens) : undefined,
    "Answer tokens": record.answerTokens && count(record.answerTokens),
    "Ended by": record.finish,
    "Seconds, others beside it": record.seconds !== undefined ? plain(Math.round(record.seconds * 100) / 100) : undefined,
    Haystack: record.haystack && record.haystack.source,
    "Starts at haystack token": record.haystack && record.haystack.offset ? count(record.haystack.offset) : undefined,
    Cell: record.cell,
    Request: record.request,
  };
  return make(
    "dl",
    { className: "facts" },
    ...Object.entries(said)
      .filter(([, value]) => value !== undefined && value !== null && value !== "")
      .map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))),
  );
}
