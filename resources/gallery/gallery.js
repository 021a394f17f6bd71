"use strict";
const $ = id => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const VERDICTS = ["keep", "exclude", "unsure"];
const COLUMNS = ["dataset", "subject", "modality", "verdict", "reason", "reviewer", "date"];
const PAGE = {cards: 48, table: 100};
const FLAGGED = DATA.measures.filter(measure => measure.flagged);

// ---------------------------------------------------------------- scans

/** Every scan as an object; its place on a sheet follows from the order of the rows. */
function readScans() {
  const groups = new Map();
  const scans = DATA.rows.map(row => {
    const scan = Object.fromEntries(DATA.columns.map((name, i) => [name, row[i]]));
    scan.flags = scan.flags ? scan.flags.split("; ") : [];
    scan.key = `${scan.dataset}/${scan.subject}/${scan.modality}`;
    scan.found = `${scan.subject} ${scan.name}`.toLowerCase();
    const group = `${scan.dataset}/${scan.modality}`;
    scan.order = groups.get(group) || 0;
    groups.set(group, scan.order + 1);
    return scan;
  });
  for (const scan of scans) {
    const {scans: most, columns} = DATA.tile, sheet = Math.floor(scan.order / most);
    const there = Math.min(most, groups.get(`${scan.dataset}/${scan.modality}`) - sheet * most);
    scan.tile = {sheet, across: Math.min(there, columns), place: scan.order % most};
  }
  return scans;
}

const measured = readScans();
const modalitiesOf = new Map();
for (const scan of measured) {
  const key = `${scan.dataset}/${scan.subject}`;
  modalitiesOf.set(key, [...(modalitiesOf.get(key) || []), scan.modality]);
}

/** Scans with a decision that this run did not work on: as a rule, those that were excluded. */
function absentScans() {
  const known = new Set(measured.map(scan => scan.key)), absent = new Map();
  for (const [key, rows] of decided) {
    for (const modality of Object.keys(rows)) {
      const [dataset, subject] = key.split("/");
      const there = modality === "*" ? modalitiesOf.has(key) : known.has(`${key}/${modality}`);
      if (!there) {
        absent.set(`${key}/${modality}`, {
          dataset, subject, name: subject, site: "", modality, key: `${key}/${modality}`,
          found: subject.toLowerCase(), flags: [], why: "", warnings: "", absent: true,
        });
      }
    }
  }
  return [...absent.values()];
}

// ---------------------------------------------------------------- decisions

const STORE = `uad-qc-2:${location.pathname}`;
const recorded = bySubject(DATA.decisions);
/** Data set and subject -> rows as changed in this browser, and the recorded ones they replace. */
let edits = loadEdits();
let decided = merged();
let scans = [];

/** Decisions as a map: data set and subject -> modality or "*" -> row. */
function bySubject(rows) {
  const found = new Map();
  for (const row of rows) {
    const key = `${row.dataset}/${row.subject}`;
    found.set(key, {...(found.get(key) || {}), [row.modality || "*"]: row});
  }
  return found;
}

/** What was changed in this browser and is not recorded by now. */
function loadEdits() {
  let stored;
  try {
    stored = JSON.parse(localStorage.getItem(STORE) || "[]");
  } catch {
    stored = []; // a browser may refuse to store anything for files
  }
  return new Map(stored.filter(([key, {rows}]) => !same(rows, recordedOf(key))));
}

function recordedOf(key) {
  return recorded.get(key) || {};
}

/** Whether two sets of rows about a subject say the same. */
function same(some, others) {
  const plain = rows => JSON.stringify(Object.keys(rows).sort().map(modality =>
    [modality, ...COLUMNS.slice(3).map(column => rows[modality][column] || "")]));
  return plain(some) === plain(others);
}

/** Change the rows of a subject in this browser. */
function edit(key, rows) {
  if (same(rows, recordedOf(key))) edits.delete(key);
  else edits.set(key, {rows, base: recordedOf(key)});
}

/** Whether a change was made before the recorded rows became what they are: these count then. */
function outdated(key) {
  const change = edits.get(key);
  return Boolean(change) && !same(change.base, recordedOf(key));
}

function keepEdits() {
  try {
    localStorage.setItem(STORE, JSON.stringify([...edits]));
    return true;
  } catch {
    return false;
  }
}

/** What was recorded when the page was made, and over it what was changed in this browser since. */
function merged() {
  const all = new Map(recorded);
  for (const [key, {rows}] of edits) if (!outdated(key)) all.set(key, rows);
  for (const [key, rows] of all) if (!Object.keys(rows).length) all.delete(key);
  return all;
}

function decisionOf(scan) {
  const rows = decided.get(`${scan.dataset}/${scan.subject}`) || {};
  return rows[scan.modality] || rows["*"] || null;
}

/** A scan's verdict in this browser that another one in the decision file has overtaken, or "". */
function overtaken(scan) {
  const key = `${scan.dataset}/${scan.subject}`;
  if (!outdated(key)) return "";
  const {rows} = edits.get(key), row = rows[scan.modality] || rows["*"];
  return `in this browser: ${row ? row.verdict + (row.reason ? ` (${row.reason})` : "") : "no verdict"}; `
    + "the decision file was changed since and counts until you decide again";
}

/** Set or (verdict "") take back the verdict on a scan, or on all scans of its subject. */
function decide(scan, whole, verdict, reason, reviewer) {
  const key = `${scan.dataset}/${scan.subject}`, old = decided.get(key) || {};
  const now = new Date(), two = number => String(number).padStart(2, "0");
  const row = {
    dataset: scan.dataset, subject: scan.subject, modality: whole ? "*" : scan.modality, verdict,
    reason: clean(reason), reviewer: clean(reviewer),
    date: `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`,
  };
  let rows = {};
  if (!whole) {
    rows = {...old};
    if (rows["*"] && scan.modality !== "*") {
      // a verdict on all scans and another on one would contradict each other in the file
      for (const modality of modalitiesOf.get(key) || []) {
        rows[modality] = {...rows["*"], modality};
      }
      delete rows["*"];
    }
    delete rows[scan.modality];
  }
  if (verdict) rows[row.modality] = row;
  edit(key, rows);
  decided = merged();
  return keepEdits();
}

const clean = text => text.replace(/[\t\r\n]+/g, " ").trim();

/** The decisions as a decision file: tabs between the columns, quotes where a field has one. */
function fileText() {
  const quoted = text => (/["\t\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [...decided.values()].flatMap(rows => Object.values(rows));
  const name = row => `${row.dataset}\t${row.subject}\t${row.modality}`;
  rows.sort((a, b) => (name(a) < name(b) ? -1 : 1));
  return [COLUMNS, ...rows.map(row => COLUMNS.map(column => row[column] || ""))]
    .map(fields => fields.map(quoted).join("\t") + "\n").join("");
}

/** Rows of a decision file; the workflow checks it more strictly. */
function parseFile(text) {
  const records = [];
  let fields = [], field = "", quoted = false;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (quoted) {
      if (c === '"' && text[i + 1] === '"') field += text[++i];
      else if (c === '"') quoted = false;
      else field += c;
    } else if (c === '"' && field === "") quoted = true;
    else if (c === "\t") { fields.push(field); field = ""; }
    else if (c === "\n") { records.push([...fields, field]); fields = []; field = ""; }
    else if (c !== "\r" && c !== "\uFEFF") field += c;
  }
  if (field || fields.length) records.push([...fields, field]);
  const [head, ...lines] = records.filter(record => record.some(text => text.trim()));
  const missing = ["dataset", "subject", "verdict"].filter(name => !(head || []).includes(name));
  if (missing.length) throw new Error(`this file lacks the column ${missing.join(", ")}`);
  return lines.map(line => {
    const row = Object.fromEntries(COLUMNS.map(name => [name, ""]));
    head.forEach((name, i) => { if (name in row) row[name] = (line[i] || "").trim(); });
    row.modality ||= "*";
    row.subject = row.subject.replace(/[^A-Za-z0-9]/g, ""); // BIDS label
    if (!VERDICTS.includes(row.verdict)) throw new Error(`unknown verdict "${row.verdict}"`);
    return row;
  });
}

// ---------------------------------------------------------------- filter and sort

const SHOW = {
  all: ["all scans", () => true],
  flagged: ["flagged", scan => scan.flags.length > 0],
  warned: ["with warnings", scan => scan.warnings !== ""],
  open: ["without a verdict", scan => !decisionOf(scan)],
  todo: ["flagged, without a verdict", scan => scan.flags.length > 0 && !decisionOf(scan)],
  keep: ["verdict: keep", scan => decisionOf(scan)?.verdict === "keep"],
  exclude: ["verdict: exclude", scan => decisionOf(scan)?.verdict === "exclude"],
  unsure: ["verdict: unsure", scan => decisionOf(scan)?.verdict === "unsure"],
  overtaken: ["changed in the file and here", scan => overtaken(scan) !== ""],
  absent: ["not in this run", scan => Boolean(scan.absent)],
};
const state = {sort: "", up: true, page: 0, view: "cards", shown: [], open: -1};

function sortKey(name) {
  if (name === "flags") return scan => scan.flags.length;
  if (name === "verdict") return scan => decisionOf(scan)?.verdict ?? null;
  return scan => scan[name] ?? null;
}

function refresh(page = 0) {
  scans = [...measured, ...absentScans()];
  const text = $("search").value.trim().toLowerCase();
  const dataset = $("dataset").value, modality = $("modality").value;
  const wanted = SHOW[$("show").value][1];
  let shown = scans.filter(scan =>
    (!text || scan.found.includes(text)) && (!dataset || scan.dataset === dataset)
    && (!modality || scan.modality === modality || scan.modality === "*") && wanted(scan));
  if (state.sort) {
    const key = sortKey(state.sort), sign = state.up ? 1 : -1;
    shown = shown.map((scan, i) => [key(scan), i, scan]).sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // unmeasured: last
      return a === b ? i - j : sign * (a < b ? -1 : 1);
    }).map(([, , scan]) => scan);
  } else if (!state.up) {
    shown.reverse();
  }
  state.shown = shown;
  state.page = Math.max(0, Math.min(page, pages() - 1));
  draw();
}

const pages = () => Math.max(1, Math.ceil(state.shown.length / PAGE[state.view]));

// ---------------------------------------------------------------- drawing

/** An element: attributes and listeners by name, children as text or elements. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter(child => child !== null));
  return element;
}

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const link = (pattern, scan, more = {}) => pattern.replace(/\{(\w+)\}/g, (_, name) =>
  ({subject: scan.subject, suffix: DATA.suffixes[scan.modality], modality: scan.modality, ...more})[name]);

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

/** A picture, or where it should be if it is not there. */
function picture(attributes) {
  return make("img", {
    decoding: "async", ...attributes,
    onerror: event => event.target.replaceWith(
      make("div", {class: "gone"}, `This picture is not there: ${attributes.src}`)),
  });
}

/** The packed volume of a scan, cut out of its sheet. */
function tile(scan, name, large = false) {
  const {width, height, columns} = DATA.tile, {sheet, across, place} = scan.tile;
  const src = link(DATA.datasets[scan.dataset].pictures.packed, scan, {sheet});
  const image = picture({
    src, alt: `Packed volume of ${name}: eight axial slices with brain and lesion outline`,
    loading: large ? "eager" : "lazy",
  });
  image.style.cssText = `width:${across * 100}%;left:${-(place % columns) * 100}%;`
    + `top:${-Math.floor(place / columns) * 100}%`;
  const box = make("span", {class: large ? "tile large" : "tile"}, image);
  box.style.aspectRatio = `${width} / ${height}`;
  return box;
}

function badges(scan) {
  const decision = decisionOf(scan), list = make("span", {class: "badges"});
  if (decision) {
    list.append(make("span", {class: `badge ${decision.verdict}`, title: decision.reason || null}, decision.verdict));
  }
  if (scan.flags.length) {
    list.append(make("span", {class: "badge flag", title: scan.why}, count(scan.flags.length, "flag")));
  }
  if (scan.warnings) list.append(make("span", {class: "badge warn", title: scan.warnings}, "warning"));
  if (overtaken(scan)) list.append(make("span", {class: "badge warn", title: overtaken(scan)}, "changed in the file"));
  if (scan.absent) list.append(make("span", {class: "badge"}, "not in this run"));
  return list;
}

const modalityName = scan => (scan.modality === "*" ? "all scans" : scan.modality);
const fullName = scan => `${scan.dataset} ${scan.name} ${modalityName(scan)}`;

function card(scan, index) {
  return make("button", {type: "button", class: "card", "data-index": index, onclick: () => open(index)},
    scan.absent ? make("span", {class: "gone", style: "display:block"}, "Not in this run: no pictures")
      : tile(scan, fullName(scan)),
    make("span", {class: "text"},
      make("b", {title: scan.name}, scan.name),
      make("small", {}, `${scan.dataset}, ${modalityName(scan)}`
        + (state.sort && FLAGS_OR_MEASURE.has(state.sort) ? `, ${sortText(scan)}` : "")),
      badges(scan)));
}

const FLAGS_OR_MEASURE = new Map(DATA.measures.map(measure => [measure.name, measure]));
const unit = measure => (measure.unit ? ` ${measure.unit}` : "");

function sortText(scan) {
  const measure = FLAGS_OR_MEASURE.get(state.sort);
  return `${measure.label} ${number(scan[measure.name])}${scan[measure.name] === null ? "" : unit(measure)}`;
}

function table(rows, first) {
  const heads = [["name", "Scan"], ["dataset", "Data set"], ["modality", "Modality"], ["verdict", "Verdict"],
    ["flags", "Flags"], ...DATA.measures.map(m => [m.name, m.unit ? `${m.label} [${m.unit}]` : m.label])];
  const head = make("tr", {}, ...heads.map(([name, label], i) => make("th", {
    scope: "col", class: i < 4 ? "left" : null,
    "aria-sort": state.sort === name ? (state.up ? "ascending" : "descending") : null,
  }, make("button", {type: "button", onclick: () => sortBy(name)},
    label + (state.sort === name ? (state.up ? " ↑" : " ↓") : "")))));
  const body = rows.map((scan, i) => make("tr", {},
    make("td", {}, make("button", {
      type: "button", class: "link", "data-index": first + i, onclick: () => open(first + i),
    }, scan.name)),
    make("td", {class: "left"}, scan.dataset), make("td", {class: "left"}, modalityName(scan)),
    make("td", {class: "left"}, decisionOf(scan)?.verdict ?? ""),
    make("td", {}, scan.flags.length ? String(scan.flags.length) : ""),
    ...DATA.measures.map(m => make("td", {class: scan.flags.includes(m.name) ? "flag" : null},
      number(scan[m.name])))));
  return make("div", {class: "scroll"}, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

function draw() {
  const size = PAGE[state.view], first = state.page * size;
  const rows = state.shown.slice(first, first + size);
  const list = state.view === "table" ? table(rows, first)
    : make("div", {class: "cards"}, ...rows.map((scan, i) => card(scan, first + i)));
  $("scans").replaceChildren(rows.length ? list : make("p", {}, "No scan fits these filters."));
  const last = first + rows.length, span = rows.length ? `${first + 1} to ${last} of ` : "";
  const flagged = state.shown.filter(scan => scan.flags.length).length;
  $("status").textContent = `${span}${count(state.shown.length, "scan")}, ${flagged} flagged`
    + ` (of ${count(measured.length, "scan")} in all).`;
  for (const nav of document.querySelectorAll("nav.pages")) {
    const button = (label, page) => make("button", {
      type: "button", disabled: page < 0 || page >= pages() || page === state.page ? "" : null,
      onclick: () => { state.page = page; draw(); $("status").scrollIntoView({block: "nearest"}); },
    }, label);
    nav.replaceChildren(...(pages() < 2 ? [] : [
      button("First", 0), button("← Back", state.page - 1),
      make("span", {}, `page ${state.page + 1} of ${pages()}`),
      button("Forward →", state.page + 1), button("Last", pages() - 1)]));
  }
  drawDecisions();
}

function drawDecisions() {
  const text = fileText(), rows = [...decided.values()].flatMap(rows => Object.values(rows));
  const counted = VERDICTS.map(v => `${rows.filter(row => row.verdict === v).length} ${v}`).join(", ");
  $("text").value = text;
  $("discard").disabled = edits.size === 0;
  const old = [...edits.keys()].filter(outdated).length, fresh = edits.size - old;
  $("decisions-about").textContent = `${count(rows.length, "decision")}: ${counted}. `
    + (fresh ? `${count(fresh, "subject")} changed in this browser; the workflow does not know of it yet. ` : "")
    + (old ? `${count(old, "subject")} changed in this browser and since then in the file, which counts: show "${SHOW.overtaken[0]}" and decide again. ` : "")
    + `Save the file as ${DATA.decisions_file} where the workflow is run, and run it again: `
    + "who is excluded is left out of the splits and tables.";
}

function sortBy(name) {
  state.up = state.sort === name ? !state.up : true;
  state.sort = name;
  $("sort").value = name;
  drawDirection();
  refresh();
}

function drawDirection() {
  $("direction").textContent = state.up ? "↑ ascending" : "↓ descending";
}

// ---------------------------------------------------------------- one scan

const STAGES = {
  skullstrip: ["Raw scan", "with the outline of the brain mask"],
  register: ["On the atlas", "brain, lesion, atlas; at the right the bias field that was removed"],
};

function open(index) {
  const scan = state.shown[index];
  if (!scan) return;
  state.open = index;
  const name = fullName(scan);
  $("scan-title").textContent = name;
  $("scan-place").textContent = `${index + 1} of ${state.shown.length}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === state.shown.length - 1;
  drawPictures(scan, name);
  drawMeasures(scan);
  const decision = decisionOf(scan);
  for (const radio of $("verdict").elements.verdict) radio.checked = radio.value === (decision?.verdict ?? "");
  $("whole").checked = decision?.modality === "*" || scan.modality === "*";
  $("whole").disabled = scan.modality === "*";
  $("reason").value = decision?.reason ?? "";
  $("reviewer").value = decision?.reviewer || state.reviewer || "";
  const by = decision ? `${decision.verdict}, by ${decision.reviewer || "unknown"}, ${decision.date || "no date"}` : "";
  say([by, overtaken(scan)].filter(Boolean).join("; "), overtaken(scan) !== "");
  if (!$("scan").open) $("scan").showModal();
  $("scan").scrollTop = 0;
  $("scan-title").focus({preventScroll: true});
  history.replaceState(null, "", `#${encodeURIComponent(scan.key)}`);
}

function drawPictures(scan, name) {
  if (scan.absent) {
    $("pictures").replaceChildren(make("p", {}, "This run did not work on this scan. If it was excluded: take the "
      + "verdict back, save the decision file and run the workflow again to have its pictures."));
    return;
  }
  const links = DATA.datasets[scan.dataset].pictures;
  const figure = (stage, what, content) =>
    make("figure", {}, make("figcaption", {}, stage, make("span", {}, ` ${what}`)), content);
  const stages = Object.entries(STAGES).filter(([stage]) => links[stage]).map(([stage, [title, what]]) => {
    const src = link(links[stage], scan);
    return figure(title, what, make("a", {href: src, target: "_blank", title: "open alone"},
      picture({src, alt: `${title} of ${name}: three planes ${what}`})));
  });
  $("pictures").replaceChildren(...stages,
    figure("Packed", "as the networks see it: brain, lesion", tile(scan, name, true)));
}

function drawMeasures(scan) {
  $("warnings").replaceChildren(...(scan.warnings || scan.why ? [make("ul", {},
    ...(scan.why ? scan.why.split("; ").map(text => make("li", {}, `Flagged: ${text}`)) : []),
    ...(scan.warnings ? scan.warnings.split("; ").map(text => make("li", {}, `Warning: ${text}`)) : []))] : []));
  if (scan.absent) return $("measures").replaceChildren();
  const middle = DATA.datasets[scan.dataset].medians[scan.modality] || {};
  const rows = DATA.measures.filter(m => scan[m.name] !== null).map(m => make("tr", {},
    make("th", {scope: "row", class: "left", title: m.help, style: "font-weight:400"}, m.label + (m.unit ? ` [${m.unit}]` : "")),
    make("td", {class: scan.flags.includes(m.name) ? "flag" : null},
      number(scan[m.name]) + (scan.flags.includes(m.name) ? " ⚑" : "")),
    make("td", {}, number(middle[m.name]))));
  return $("measures").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", {scope: "col", class: "left"}, "Measure"),
      make("th", {scope: "col"}, "Scan"), make("th", {scope: "col"}, "Median"))),
    make("tbody", {}, ...rows)),
  make("details", {}, make("summary", {}, "What the measures are"), make("dl", {}, ...DATA.measures
    .filter(m => scan[m.name] !== null).flatMap(m => [make("dt", {}, m.label), make("dd", {}, m.help)]))));
}

function say(text, bad = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("bad", bad);
}

function saveVerdict() {
  const scan = state.shown[state.open], form = $("verdict").elements;
  const verdict = form.verdict.value, reason = $("reason").value, reviewer = $("reviewer").value;
  if (verdict === "exclude" && !clean(reason)) {
    say("Say why it is excluded.", true);
    $("reason").focus();
    return;
  }
  state.reviewer = reviewer;
  const kept = decide(scan, $("whole").checked, verdict, reason, reviewer);
  say(kept ? "Saved in this browser." : "Noted, but this browser stores nothing for files: download the file before you close the page.", !kept);
  draw(); // not filtered anew: the scan would vanish while one looks at it
}

function step(by) {
  const index = state.open + by;
  if (index < 0 || index >= state.shown.length) return;
  const page = Math.floor(index / PAGE[state.view]);
  if (page !== state.page) { state.page = page; draw(); }
  open(index);
}

// ---------------------------------------------------------------- controls

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, label]) => make("option", {value}, label)));
}

function begin() {
  const unique = name => [...new Set(measured.map(scan => scan[name]))];
  fill($("dataset"), [["", "all"], ...unique("dataset").map(name => [name, name])]);
  fill($("modality"), [["", "all"], ...unique("modality").map(name => [name, name])]);
  fill($("show"), Object.entries(SHOW).map(([value, [label]]) => [value, label]));
  fill($("sort"), [["", "data set and name"], ["flags", "number of flags"], ["name", "subject"], ["verdict", "verdict"],
    ...DATA.measures.map(m => [m.name, m.label])]);
  if (DATA.phantom) $("source").append(make("span", {class: "phantom"}, "phantom data"));
  $("about").textContent = (DATA.phantom
    ? "Scans of a synthetic phantom: the page shows that quality control runs; it says nothing about real scans. " : "")
    + `${count(measured.length, "scan")} of ${count(modalitiesOf.size, "subject")} in ${count(unique("dataset").length, "data set")}. `
    + `A measure is flagged where its modified z-score among the scans of its data set and modality is beyond ${DATA.threshold}; `
    + `data sets with fewer than ${DATA.least} scans have no flags. A flag is a reason to look, not a verdict.`;
  const later = (() => { let timer; return () => { clearTimeout(timer); timer = setTimeout(refresh, 120); }; })();
  $("search").addEventListener("input", later);
  for (const id of ["dataset", "modality", "show"]) $(id).addEventListener("change", () => refresh());
  $("tools").addEventListener("submit", event => event.preventDefault());
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; refresh(); });
  $("direction").addEventListener("click", () => { state.up = !state.up; drawDirection(); refresh(); });
  $("view").addEventListener("click", () => {
    state.view = state.view === "cards" ? "table" : "cards";
    $("view").textContent = state.view === "cards" ? "Table" : "Cards";
    $("view").setAttribute("aria-pressed", state.view === "table");
    state.page = 0;
    draw();
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("scan").close());
  $("scan").addEventListener("close", () => {
    history.replaceState(null, "", location.pathname + location.search);
    const focused = document.querySelector(`[data-index="${state.open}"]`);
    const index = state.open;
    refresh(state.page);
    (document.querySelector(`[data-index="${index}"]`) || focused || $("search")).focus({preventScroll: true});
  });
  $("verdict").addEventListener("submit", event => { event.preventDefault(); saveVerdict(); });
  document.addEventListener("keydown", onKey);
  $("download").addEventListener("click", () => {
    const blob = new Blob([fileText()], {type: "text/tab-separated-values"});
    const address = URL.createObjectURL(blob);
    make("a", {href: address, download: DATA.decisions_file.split("/").pop()}).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
    $("said").textContent = "Downloaded.";
  });
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(fileText());
      $("said").textContent = "Copied.";
    } catch {
      document.querySelector("#decisions details").open = true;
      $("text").select();
      $("said").textContent = "This browser does not let the page copy: the text is selected below.";
    }
  });
  $("load").addEventListener("change", async event => {
    try {
      const rows = parseFile(await event.target.files[0].text());
      for (const [key, found] of bySubject(rows)) edit(key, found);
      decided = merged();
      keepEdits();
      refresh();
      $("said").textContent = `${count(rows.length, "decision")} loaded.`;
    } catch (error) {
      $("said").textContent = `Not loaded: ${error.message}.`;
    }
    event.target.value = "";
  });
  $("discard").addEventListener("click", () => {
    if (!confirm("Discard the verdicts that were given in this browser?")) return;
    edits = new Map();
    decided = merged();
    keepEdits();
    refresh();
    $("said").textContent = "Discarded.";
  });
  refresh();
  const asked = decodeURIComponent(location.hash.slice(1));
  const index = asked ? state.shown.findIndex(scan => scan.key === asked) : -1;
  if (index >= 0) {
    state.page = Math.floor(index / PAGE[state.view]);
    draw();
    open(index);
  }
}

function onKey(event) {
  const typing = event.target.matches("input:not([type=radio]):not([type=checkbox]), select, textarea");
  if (!$("scan").open || typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input[type=radio]") && event.key.startsWith("Arrow")) return;
  const verdict = VERDICTS.find(name => name[0] === event.key);
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (verdict) {
    for (const radio of $("verdict").elements.verdict) radio.checked = radio.value === verdict;
    if (verdict === "exclude") $("reason").focus();
    else saveVerdict();
  } else return;
  event.preventDefault();
}

begin();
