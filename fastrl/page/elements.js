// Elements whose texts are set as texts: no data is ever parsed as HTML.

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const copyIsDone = "Copied";

// A button that copies a text; the fallback is for browsers that keep the clipboard from files.
function copyButton(text) {
  const button = element("button", { type: "button", class: "copy" }, "Copy");
  const say = (word) => {
    button.textContent = word;
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  const byHand = () => {
    const area = element("textarea", { class: "off-screen", "aria-hidden": "true" });
    area.value = text;
    button.after(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    button.focus();
    say(copied ? copyIsDone : "Could not copy");
  };
  button.addEventListener("click", () => {
    if (!navigator.clipboard) byHand();
    else navigator.clipboard.writeText(text).then(() => say(copyIsDone), byHand);
  });
  return button;
}

const MINUS = "\u2212";
const SUPERSCRIPTS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";

function powerOfTen(exponent) {
  const digits = String(Math.abs(exponent)).replace(/\d/g, (d) => SUPERSCRIPTS[d]);
  return `10${exponent < 0 ? "\u207b" : ""}${digits}`;
}

// A number with so many significant digits: 0.1235, 12.35, 12 346, 1.235 x 10^9.
function numberText(value, digits = 4) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) {
    const [head, exponent] = value.toExponential(digits - 1).split("e");
    return `${trimZeros(head)} \u00d7 ${powerOfTen(Number(exponent))}`.replace("-", MINUS);
  }
  if (Number.isInteger(value)) return groupThousands(String(value));
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  return groupThousands(trimZeros(value.toFixed(Math.min(places, 12))));
}

const trimZeros = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

function groupThousands(text) {
  const [whole, rest] = text.replace("-", MINUS).split(".");
  // four digits stay together: years, and steps of a run
  const grouped = whole.length > 5 || (whole.length === 5 && whole[0] !== MINUS)
    ? whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") : whole;
  return rest === undefined ? grouped : `${grouped}.${rest}`;
}

const percentText = (value, digits = 4) =>
  value === null || value === undefined ? "\u2013" : `${numberText(value * 100, digits)} %`;
