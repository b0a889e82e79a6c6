const AXIS_FONT = "12px system-ui, sans-serif";
const LOOKS = {
  skipped: { lines: [[0, 8, 8, 0]], label: "skipped" },
  error: { lines: [[0, 8, 8, 0], [0, 0, 8, 8]], label: "in error" },
  missing: { lines: [[3, 4, 5, 4]], label: "not in the results" },
  unpaired: { lines: [[0, 0, 8, 8]], label: "not measured in both runs" },
};

/** A repeating hatch, so that what was not measured never looks like a score. */
function hatch(context, state) {
  const tile = make("canvas", { width: 8, height: 8 });
  const pen = tile.getContext("2d");
  pen.fillStyle = cssColour(state === "missing" ? "--page" : "--blank");
  pen.fillRect(0, 0, 8, 8);
  pen.strokeStyle = cssColour("--hatch");
  for (const [x, y, toX, toY] of LOOKS[state].lines) {
    pen.beginPath();
    pen.moveTo(x, y);
    pen.lineTo(toX, toY);
    pen.stroke();
  }
  return context.createPattern(tile, "repeat");
}

/** Which of `total` evenly spaced labels to write when each needs `pitch` of the `room`; both ends where they fit. */
function spread(total, room, pitch) {
  const step = Math.max(1, Math.ceil(pitch / (room / total)));
  const shown = [];
  for (let index = 0; index < total; index += step) shown.push(index);
  const last = shown[shown.length - 1];
  if (last !== total - 1) {
    if (shown.length > 1 && total - 1 - last < step) shown.pop();
    shown.push(total - 1);
  }
  return shown;
}

/**
 * A grid of coloured cells on a canvas, for pointer and keyboard.
 *
 * `show` takes what is to be seen: `rows` and `columns` (labels), `rowTitle`, `columnTitle`,
 * `cell(row, column)` ({value, state, partial}), `colours`, `low`, `high`, `signed`, `rings` ([row, column] pairs),
 * `leastNumber` (the smallest value that is written into its cell), `marked` (rows), `isSmall` (one of several maps side by side), `isEdged`
 * (cells have a line around them),
 * `tell(row, column)` (the hover's lines) and `open(row, column)`.
 */
class Heatmap {
  constructor(label) {
    this.canvas = make("canvas", {});
    this.cursor = make("div", { className: "cursor", hidden: true });
    this.frame = make("div", { className: "frame" }, this.canvas, this.cursor);
    this.spoken = make("div", { className: "unseen", role: "status", "aria-live": "polite" });
    this.element = make(
      "div",
      {
        className: "heatmap",
        tabIndex: 0,
        role: "application",
        "aria-label": `${label}. Arrow keys move from cell to cell, Enter opens one.`,
      },
      this.frame,
      this.spoken,
    );
    this.table = make("details", {}, make("summary", { textContent: "As a table" }));
    this.table.addEventListener("toggle", () => this.fillTable());
    this.label = label;
    this.at = [0, 0];
    this.tip = document.getElementById("tip");
    this.frame.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.hover(event));
    this.frame.addEventListener("pointerleave", () => this.leave());
    this.frame.addEventListener("click", (event) => {
      const at = this.cellAt(event);
      if (at) {
        this.moveTo(at);
        this.leave();
        this.grid.open(...at);
      }
    });
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("focus", () => this.element.matches(":focus-visible") && this.moveTo(this.at, true));
    this.element.addEventListener("blur", () => this.leave());
    this.element.addEventListener("scroll", () => this.leave());
    darkPage.addEventListener("change", () => this.draw());
    new ResizeObserver(() => {
      if (this.grid && this.element.clientWidth !== this.width) this.draw();
    }).observe(this.element);
  }

  show(grid) {
    this.grid = grid;
    this.at = [Math.min(this.at[0], grid.rows.length - 1), Math.min(this.at[1], grid.columns.length - 1)];
    this.draw();
    this.fillTable();
  }

  /** The same numbers as a table, for those who hear the page and for copying; made when it is opened. */
  fillTable() {
    const { grid } = this;
    while (this.table.childElementCount > 1) this.table.lastChild.remove();
    if (!this.table.open || !grid) return;
    const text = ({ value, state }) => (state ? LOOKS[state].label : value.toFixed(3).replace("-", "\u2212"));
    const head = (textContent, scope) => make("th", { scope, textContent });
    const rows = grid.rows.map((label, row) =>
      make("tr", {}, head(label, "row"), ...grid.columns.map((_, column) => make("td", { textContent: text(grid.cell(row, column)) }))),
    );
    const corner = head(`${grid.rowTitle} \\ ${grid.columnTitle}`, "col");
    const table = make(
      "table",
      { className: "arms" },
      make("thead", {}, make("tr", {}, corner, ...grid.columns.map((label) => head(label, "col")))),
      make("tbody", {}, ...rows),
    );
    this.table.append(scrolled(table, `${this.label}, as a table`));
  }

  draw() {
    const { grid, canvas } = this;
    this.width = this.element.clientWidth;
    if (!grid || !this.width) return;
    const pen = canvas.getContext("2d");
    pen.font = AXIS_FONT;
    const [rows, columns] = [grid.rows.length, grid.columns.length];
    const labelWidth = Math.max(...grid.rows.map((label) => pen.measureText(label).width));
    this.left = Math.ceil(labelWidth) + 32;
    this.top = 4;
    const [widest, narrowest, highest, lowest, room] = grid.isSmall ? [40, 3, 18, 4, 230] : [104, 6, 36, 9, 460];
    this.cellWidth = Math.min(widest, Math.max(narrowest, Math.floor((this.width - this.left - 4) / columns)));
    this.cellHeight = Math.min(highest, Math.max(lowest, Math.floor(room / rows)));
    const plot = [this.cellWidth * columns, this.cellHeight * rows];
    // The title of the axis may be longer than a small grid is wide.
    const width = this.left + Math.max(plot[0], Math.ceil(pen.measureText(grid.columnTitle).width)) + 4;
    const height = this.top + plot[1] + 44;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    pen.scale(scale, scale);
    this.drawCells(pen);
    this.drawAxes(pen, plot);
    this.cursor.hidden = true;
    this.element.plot = { left: this.left, top: this.top, width: this.cellWidth, height: this.cellHeight };
  }

  drawCells(pen) {
    const { grid, cellWidth, cellHeight } = this;
    const colour = ramp(grid.colours);
    const gap = Math.min(cellWidth, cellHeight) >= 12 ? 1 : 0;
    const hasNumbers = cellWidth >= 34 && cellHeight >= 15;
    const patterns = {};
    const edge = cssColour("--edge");
    pen.font = "11.5px system-ui, sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    for (let row = 0; row < grid.rows.length; row += 1) {
      for (let column = 0; column < grid.columns.length; column += 1) {
        const cell = grid.cell(row, column);
        const [x, y] = this.corner(row, column);
        const [width, height] = [cellWidth - gap, cellHeight - gap];
        if (cell.state) {
          patterns[cell.state] ??= hatch(pen, cell.state);
          pen.fillStyle = patterns[cell.state];
          pen.fillRect(x, y, width, height);
          continue;
        }
        const shade = colour((cell.value - grid.low) / (grid.high - grid.low || 1));
        pen.fillStyle = `rgb(${shade.join(",")})`;
        pen.fillRect(x, y, width, height);
        if (grid.isEdged && gap) {
          pen.strokeStyle = edge; // a perfect cell is nearly as light as the page, a miss as dark as a dark one
          pen.lineWidth = 1;
          pen.strokeRect(x + 0.5, y + 0.5, width - 1, height - 1);
        }
        if (hasNumbers && (grid.signed || cell.value >= (grid.leastNumber ?? 0))) {
          pen.fillStyle = readableOn(shade);
          pen.fillText(score(cell.value, grid.signed), x + width / 2, y + height / 2 + 0.5);
        } else if (grid.signed && cell.value < 0 && width >= 5) {
          pen.fillStyle = readableOn(shade); // the two arms of the map look alike in grey
          pen.fillRect(x + width / 2 - 2, y + height / 2 - 0.5, 4, 1);
        }
        if (cell.partial) {
          pen.fillStyle = readableOn(shade);
          pen.beginPath();
          pen.moveTo(x + width - 7, y);
          pen.lineTo(x + width, y);
          pen.lineTo(x + width, y + 7);
          pen.fill();
        }
      }
    }
    for (const [row, column] of grid.rings || []) {
      const [x, y] = this.corner(row, column);
      for (const [stroke, size] of [[cssColour("--page"), 4], [cssColour("--ink"), 1.75]]) {
        pen.strokeStyle = stroke;
        pen.lineWidth = size;
        pen.strokeRect(x - 0.5, y - 0.5, cellWidth - gap + 1, cellHeight - gap + 1);
      }
    }
  }

  drawAxes(pen, [plotWidth, plotHeight]) {
    const { grid, left, top, cellWidth, cellHeight } = this;
    pen.font = AXIS_FONT;
    pen.fillStyle = cssColour("--ink");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const row of spread(grid.rows.length, plotHeight, 15)) {
      pen.fillText(grid.rows[row], left - 9, top + (row + 0.5) * cellHeight);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    const widest = Math.max(...grid.columns.map((label) => pen.measureText(label).width)) + 12;
    for (const column of spread(grid.columns.length, plotWidth, widest)) {
      pen.fillText(grid.columns[column], left + (column + 0.5) * cellWidth, top + plotHeight + 7);
    }
    pen.fillStyle = cssColour("--accent");
    for (const row of grid.marked || []) pen.fillRect(left - 6, top + row * cellHeight, 3, cellHeight - 1);
    pen.fillStyle = cssColour("--faint");
    pen.textAlign = "left";
    pen.fillText(grid.columnTitle, left, top + plotHeight + 26);
    pen.save();
    pen.translate(1, top + plotHeight);
    pen.rotate(-Math.PI / 2);
    // Where the grid is too low for the axis' whole title its first word must do.
    const fits = pen.measureText(grid.rowTitle).width <= plotHeight;
    pen.fillText(fits ? grid.rowTitle : grid.rowTitle.split(" (")[0], 0, 0);
    pen.restore();
  }

  corner(row, column) {
    return [this.left + column * this.cellWidth, this.top + row * this.cellHeight];
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - this.left) / this.cellWidth);
    const row = Math.floor((event.clientY - box.top - this.top) / this.cellHeight);
    const isInside = row >= 0 && column >= 0 && row < this.grid.rows.length && column < this.grid.columns.length;
    return isInside ? [row, column] : null;
  }

  hover(event) {
    const at = this.cellAt(event);
    if (at) this.moveTo(at);
    else this.leave();
  }

  /** Put the cursor on a cell and say what is in it; `spoken` for those who hear the page. */
  moveTo(at, spoken) {
    this.at = at;
    const [x, y] = this.corner(...at);
    Object.assign(this.cursor.style, {
      left: `${x - 2}px`,
      top: `${y - 2}px`,
      width: `${this.cellWidth + 3}px`,
      height: `${this.cellHeight + 3}px`,
    });
    this.cursor.hidden = false;
    const [title, ...lines] = this.grid.tell(...at);
    if (spoken) {
      this.intoView(x);
      this.spoken.textContent = [title, ...lines].join(". ");
    }
    const answer = lines.length > 1 ? lines.pop() : null;
    this.tip.replaceChildren(
      make("strong", { textContent: title }),
      ...lines.map((text) => make("div", { textContent: text })),
      ...(answer ? [make("div", { className: "answer", dir: "auto", textContent: answer })] : []),
    );
    this.tip.hidden = false;
    const box = this.cursor.getBoundingClientRect();
    const [width, height] = [this.tip.offsetWidth, this.tip.offsetHeight];
    const below = box.bottom + 10 + height < innerHeight || box.top < height + 10;
    const tipX = Math.max(8, Math.min(box.left, innerWidth - width - 12));
    this.tip.style.transform = `translate(${tipX}px, ${below ? box.bottom + 10 : box.top - height - 10}px)`;
  }

  intoView(x) {
    const { element } = this;
    this.isMoving = true;
    if (x < element.scrollLeft) element.scrollLeft = Math.max(0, x - this.left);
    else if (x + this.cellWidth > element.scrollLeft + element.clientWidth) {
      element.scrollLeft = x + this.cellWidth - element.clientWidth + 8;
    }
    this.cursor.scrollIntoView({ block: "nearest" });
    requestAnimationFrame(() => requestAnimationFrame(() => (this.isMoving = false)));
  }

  leave() {
    if (this.isMoving) return;
    this.cursor.hidden = true;
    this.tip.hidden = true;
  }

  key(event) {
    const [row, column] = this.at;
    const [lastRow, lastColumn] = [this.grid.rows.length - 1, this.grid.columns.length - 1];
    const moves = {
      ArrowUp: [Math.max(0, row - 1), column],
      ArrowDown: [Math.min(lastRow, row + 1), column],
      ArrowLeft: [row, Math.max(0, column - 1)],
      ArrowRight: [row, Math.min(lastColumn, column + 1)],
      Home: [row, 0],
      End: [row, lastColumn],
      PageUp: [0, column],
      PageDown: [lastRow, column],
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) {
      event.preventDefault();
      this.moveTo(moves[event.key], true);
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.isMoving = false;
      this.leave();
      this.grid.open(row, column);
    } else if (event.key === "Escape") {
      this.leave();
    }
  }
}

/** What the colours and hatches of a grid mean. */
function legend(grid, title, extra) {
  const strip = make("i", {});
  strip.style.background = `linear-gradient(to right, ${grid.colours.join(",")})`;
  const ends = [grid.low, grid.high].map((value) => score(value, grid.signed));
  const states = new Set();
  let isPartial = false;
  grid.rows.forEach((_, row) =>
    grid.columns.forEach((_, column) => {
      const cell = grid.cell(row, column);
      if (cell.state) states.add(cell.state);
      isPartial ||= Boolean(cell.partial);
    }),
  );
  const patches = Object.keys(LOOKS).filter((state) => states.has(state)).map((state) => {
    const patch = make("canvas", { width: 24, height: 14 });
    const pen = patch.getContext("2d");
    pen.fillStyle = hatch(pen, state);
    pen.fillRect(0, 0, 24, 14);
    return make("span", {}, patch, LOOKS[state].label);
  });
  return make(
    "div",
    { className: "legend" },
    make("span", { className: "ramp" }, title, make("span", {}, ends[0]), strip, make("span", {}, ends[1])),
    ...patches,
    ...(isPartial ? ["◥ mean without records that have no score"] : []),
    ...(extra || []),
  );
}
