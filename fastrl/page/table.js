// Tables that are sorted by a click on a heading.

const ROWS_AT_FIRST = 200;
const LONG = 24; // characters above which a cell may have several lines
// a number alone, or before a sign or a unit: "81.2", "0.4 [0.3, 0.5]", "12 s", but no date
const LEADING_NUMBER = /^\s*([-+\u2212]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*(?:$|[[(%\u00b1a-z])/i;
const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

function leadingNumber(text) {
  const match = LEADING_NUMBER.exec(text);
  return match ? Number(match[1].replace(MINUS, "-")) : null;
}

const isEmpty = (cell) => cell === null || cell === "";

// How a column is written and compared: {isNumber, text, key}.
function columnOf(rows, index) {
  const cells = rows.map((row) => row[index]).filter((cell) => !isEmpty(cell));
  const numbers = cells.filter((cell) => typeof cell === "number");
  const numeric = cells.length > 0 &&
    cells.every((cell) => typeof cell === "number" || leadingNumber(String(cell)) !== null);
  const write = numberWriter(numbers);
  const text = (cell) => {
    if (cell === null) return "\u2013";
    if (typeof cell === "boolean") return cell ? "yes" : "no";
    return typeof cell === "number" ? write(cell) : cell;
  };
  const key = (cell) => (numeric && typeof cell === "string" ? leadingNumber(cell) : cell);
  return { isNumber: numeric, text, key };
}

// Numbers of a column get the same places where that loses none of them; else each its own digits.
function numberWriter(numbers) {
  const sizes = numbers.map(Math.abs).filter((size) => size > 0);
  const top = Math.max(...sizes, 0);
  if (top >= 1e9 || numbers.every(Number.isInteger)) return (v) => numberText(v);
  const places = Math.max(0, Math.min(6, 3 - Math.floor(Math.log10(top))));
  if (Math.min(...sizes) < 5 * 10 ** -places) return (v) => numberText(v);
  return (v) => groupThousands(v.toFixed(places));
}

function compareCells(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  if (typeof b === "number") return 1;
  return words.compare(String(a), String(b));
}

function tableElement(block) {
  const columns = block.columns.map((_, i) => columnOf(block.rows, i));
  const order = block.rows.map((_, i) => i);
  let sorted = { column: -1, down: false };
  let limit = ROWS_AT_FIRST;
  const body = element("tbody");
  const headings = block.columns.map((name, i) => {
    const button = element("button", { type: "button" }, name, element("span", { class: "arrow" }));
    button.addEventListener("click", () => sortBy(i));
    return element("th", { scope: "col", class: columns[i].isNumber ? "number" : null }, button);
  });
  const all = element("button", { type: "button", class: "more", onclick: () => {
    limit = Infinity;
    fill();
  } });
  const empty = element("p", { class: "empty" });

  function sortBy(column) {
    // numbers begin with the highest, texts with the first
    const down = sorted.column === column ? !sorted.down : columns[column].isNumber;
    sorted = { column, down };
    const { key } = columns[column];
    const cell = (row) => block.rows[row][column];
    order.sort((a, b) => {
      const missing = isEmpty(cell(a)) - isEmpty(cell(b));
      if (missing !== 0) return missing;
      if (isEmpty(cell(a))) return a - b;
      const compared = compareCells(key(cell(a)), key(cell(b)));
      return (down ? -compared : compared) || a - b;
    });
    headings.forEach((heading, i) => {
      if (i === column) heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
    });
    fill();
  }

  function fill() {
    const visible = order.filter((row) => !hiddenGroups.has(block.row_groups[row] ?? ""));
    const rows = visible.slice(0, limit).map((row) => element("tr", {},
      ...block.rows[row].map((cell, i) => {
        const text = columns[i].text(cell);
        const size = text.length > LONG ? "long" : "short";
        return element("td", { class: columns[i].isNumber ? "number" : size }, text);
      })));
    body.replaceChildren(...rows);
    all.hidden = visible.length <= limit;
    all.textContent = `Show all ${visible.length} rows`;
    empty.hidden = visible.length > 0;
    empty.textContent = block.rows.length === 0 ? "No rows."
      : "All rows are hidden by the switches at the top.";
  }

  fill();
  groupListeners.push(fill);
  const label = block.title || "Numbers of the plot";
  return element("section", { class: "table" },
    block.title ? element("h3", {}, block.title) : null,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
      element("table", {}, element("thead", {}, element("tr", {}, ...headings)), body)),
    empty, all, block.note ? element("p", { class: "note" }, block.note) : null);
}
