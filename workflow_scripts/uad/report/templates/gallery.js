"use strict";
const $ = id => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const VERDICTS = ["keep", "exclude", "unsure"];
const COLUMNS = ["dataset", "subject", "modality", "verdict", "reason", "reviewer", "date"];
const PAGE = {cards: 48, table: 100};
const MEASURES = new Map(DATA.measures.map(measure => [measure.name, measure]));

// ---------------------------------------------------------------- text

/** Markup of a template text: values are escaped, unless they are markup themselves. */
class Markup extends String {}
function html(parts, ...values) {
  return new Markup(String.raw({raw: parts}, ...values.map(shown)));
}
function shown(value) {
  if (Array.isArray(value)) return value.map(shown).join("");
  if (value instanceof Markup) return value;
  return value === null || value === undefined || value === false ? ""
    : String(value).replace(/[&<>"]/g, c => `&#${c.charCodeAt()};`);
}
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
const modalityOf = scan => (scan.modality === "*" ? "all scans" : scan.modality);
const nameOf = scan => `${scan.dataset} ${scan.name} ${modalityOf(scan)}`;
const labelOf = measure => measure.label + (measure.unit ? ` [${measure.unit}]` : "");
const items = text => (text ? text.split(DATA.separator) : []);

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// ---------------------------------------------------------------- scans

const subjectOf = scan => `${scan.dataset}/${scan.subject}`;
const measured = DATA.rows.map(row => {
  const scan = Object.fromEntries(DATA.columns.map((name, i) => [name, row[i]]));
  return Object.assign(scan, {flags: items(scan.flags), key: `${subjectOf(scan)}/${scan.modality}`,
    found: `${scan.subject} ${scan.name}`.toLowerCase()});
});
const siblings = Map.groupBy(measured, subjectOf);
const storeOf = scan => `${scan.dataset}/${scan.modality}`;
const stores = Map.groupBy(measured, storeOf); // in the order of the tiles on their sheets

// ---------------------------------------------------------------- decisions

// Rows of a decision file by subject and modality (or "*"): those that the run honours, and in
// edits those that this browser keeps, each with what was recorded when the edit was made.
const STORE = `uad-qc-3:${location.pathname}`;
const recorded = bySubject(DATA.decisions);
const edits = new Map();

function bySubject(rows) {
  const found = new Map();
  for (const row of rows) {
    found.set(subjectOf(row), {...found.get(subjectOf(row)), [row.modality || "*"]: row});
  }
  return found;
}

/** What rows about a subject say, as text that can be compared. */
const said = rows => JSON.stringify(Object.keys(rows || {}).sort().map(modality =>
  [modality, ...COLUMNS.slice(3).map(column => rows[modality][column] || "")]));

/** Whether the decision file was changed after an edit: it counts then. */
const outdated = subject => edits.has(subject) && edits.get(subject).base !== said(recorded.get(subject));

function rowsOf(subject) {
  return (edits.has(subject) && !outdated(subject) ? edits.get(subject).rows : recorded.get(subject)) || {};
}

const choose = (rows, scan) => rows[scan.modality] || rows["*"];
const decisionOf = scan => choose(rowsOf(subjectOf(scan)), scan);
const decidedSubjects = () => [...new Set([...recorded.keys(), ...edits.keys()])];
const decisions = () => decidedSubjects().flatMap(subject => Object.values(rowsOf(subject)));

/** Change what is decided about a subject; whether the browser could store it. */
function edit(subject, rows) {
  edits.set(subject, {rows, base: said(recorded.get(subject))});
  return storeEdits();
}

function storeEdits() {
  for (const [subject, {rows}] of edits) if (said(rows) === said(recorded.get(subject))) edits.delete(subject);
  try {
    localStorage.setItem(STORE, JSON.stringify([...edits]));
    return true;
  } catch {
    return false; // a browser may refuse to store anything for files
  }
}

function loadEdits() {
  try {
    for (const [subject, change] of JSON.parse(localStorage.getItem(STORE) || "[]")) edits.set(subject, change);
  } catch { /* nothing stored */ }
  storeEdits();
}

/** A verdict of this browser that another one in the decision file has overtaken, or "". */
function overtaken(scan) {
  if (!outdated(subjectOf(scan))) return "";
  const row = choose(edits.get(subjectOf(scan)).rows, scan);
  return `in this browser: ${row ? row.verdict + (row.reason ? ` (${row.reason})` : "") : "no verdict"}; `
    + "the decision file was changed since and counts until you decide again";
}

/** Set or (verdict "") take back the verdict on a scan, or on all scans of its subject. */
function decide(scan, whole, verdict, reason, reviewer) {
  const clean = text => text.replace(/[\t\r\n]+/g, " ").trim();
  const rows = whole ? {} : {...rowsOf(subjectOf(scan))};
  if (rows["*"] && scan.modality !== "*") {
    // a verdict on all scans and another on one would contradict each other in the file
    for (const {modality} of siblings.get(subjectOf(scan))) rows[modality] = {...rows["*"], modality};
    delete rows["*"];
  }
  const modality = whole ? "*" : scan.modality, date = new Date().toLocaleDateString("sv"); // ISO
  delete rows[modality];
  if (verdict) {
    rows[modality] = {dataset: scan.dataset, subject: scan.subject, modality, verdict,
      reason: clean(reason), reviewer: clean(reviewer), date};
  }
  return edit(subjectOf(scan), rows);
}

/** The decision file: tabs between the columns, quotes where a field has one. */
function fileText() {
  const quoted = text => (/["\t\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = decisions().map(row => COLUMNS.map(column => quoted(row[column] || "")).join("\t"));
  return [COLUMNS.join("\t"), ...lines.sort()].join("\n") + "\n";
}

/** Rows of a decision file; the workflow checks it more strictly. */
function parseFile(text) {
  const records = [[]];
  for (const [, field, end] of text.replace(/^\uFEFF/, "").matchAll(/("(?:[^"]|"")*"|[^\t\r\n]*)(\t|\r?\n|$)/g)) {
    records.at(-1).push((field[0] === '"' ? field.slice(1, -1).replaceAll('""', '"') : field).trim());
    if (end !== "\t") records.push([]);
  }
  const [head, ...lines] = records.filter(record => record.some(Boolean));
  const missing = ["dataset", "subject", "verdict"].filter(name => !(head || []).includes(name));
  if (missing.length) throw new Error(`this file lacks the column ${missing.join(", ")}`);
  return lines.map(line => {
    const row = Object.fromEntries(COLUMNS.map(name => [name, line[head.indexOf(name)] || ""]));
    if (!VERDICTS.includes(row.verdict)) throw new Error(`unknown verdict "${row.verdict}"`);
    return {...row, modality: row.modality || "*", subject: row.subject.replace(/[^A-Za-z0-9]/g, "")};
  });
}

// ---------------------------------------------------------------- filter and sort

const SHOW = {
  all: () => true,
  flagged: scan => scan.flags.length > 0,
  warned: scan => scan.warnings !== "",
  open: scan => !decisionOf(scan),
  todo: scan => scan.flags.length > 0 && !decisionOf(scan),
  overtaken: scan => overtaken(scan) !== "",
  absent: scan => Boolean(scan.absent),
  ...Object.fromEntries(VERDICTS.map(verdict => [verdict, scan => decisionOf(scan)?.verdict === verdict])),
};
const state = {sort: "", up: true, page: 0, view: "cards", shown: [], open: -1};
const pages = () => Math.max(1, Math.ceil(state.shown.length / PAGE[state.view]));

/** Decisions about scans that this run did not work on: as a rule, those that were excluded. */
function absentScans() {
  const absent = row => !(siblings.get(subjectOf(row)) || []).some(scan => [scan.modality, "*"].includes(row.modality));
  return decisions().filter(absent).map(({dataset, subject, modality}) => ({
    dataset, subject, modality, name: subject, key: `${dataset}/${subject}/${modality}`, absent: true,
    found: subject.toLowerCase(), flags: [], why: "", warnings: ""}));
}

function sortKey(scan) {
  if (state.sort === "flags") return scan.flags.length;
  if (state.sort === "verdict") return decisionOf(scan)?.verdict ?? null;
  return scan[state.sort] ?? null;
}

function refresh(page = 0) {
  const text = $("search").value.trim().toLowerCase(), wanted = SHOW[$("show").value];
  const dataset = $("dataset").value, modality = $("modality").value, sign = state.up ? 1 : -1;
  const fitting = [...measured, ...absentScans()].filter(scan => scan.found.includes(text)
    && (!dataset || scan.dataset === dataset)
    && (!modality || [modality, "*"].includes(scan.modality)) && wanted(scan));
  if (!state.sort) state.shown = state.up ? fitting : fitting.reverse();
  else {
    state.shown = fitting.map((scan, i) => [sortKey(scan), i, scan]).sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j; // unmeasured: last
      return a === b ? i - j : sign * (a < b ? -1 : 1);
    }).map(([, , scan]) => scan);
  }
  draw(Math.min(page, pages() - 1));
}

// ---------------------------------------------------------------- all scans

const link = (stage, scan, sheet) => DATA.pictures[scan.dataset][stage].replace(/\{(\w+)\}/g, (_, name) =>
  ({subject: scan.subject, suffix: DATA.suffixes[scan.modality], modality: scan.modality, sheet})[name]);

/** The packed volume of a scan, cut out of its sheet. */
function tile(scan, size) {
  const {ratio, columns, scans} = DATA.tile, store = stores.get(storeOf(scan));
  const order = store.indexOf(scan), sheet = Math.floor(order / scans), place = order % scans;
  const across = Math.min(columns, store.length - sheet * scans);
  return html`<span class="tile ${size}" style="aspect-ratio:${ratio}"><img decoding="async" loading="lazy"
    src="${link("packed", scan, sheet)}" style="width:${across * 100}%;left:${-(place % columns) * 100}%;top:${
    -Math.floor(place / columns) * 100}%"
    alt="Packed volume of ${nameOf(scan)}: eight axial slices with brain and lesion outline"></span>`;
}

function card(scan, index) {
  const decision = decisionOf(scan), measure = MEASURES.get(state.sort), badges = [
    [decision?.verdict, decision?.verdict, decision?.reason],
    [scan.flags.length && count(scan.flags.length, "flag"), "flag", scan.why],
    [scan.warnings && "warning", "warn", scan.warnings],
    [overtaken(scan) && "changed in the file", "warn", overtaken(scan)],
    [scan.absent && "not in this run", "", ""]].filter(([text]) => text);
  return html`<button type="button" class="card" data-index="${index}">
    ${scan.absent ? html`<span class="gone">Not in this run: no pictures</span>` : tile(scan, "")}
    <span class="text"><b title="${scan.name}">${scan.name}</b><small>${scan.dataset}, ${modalityOf(scan)}${
    measure && `, ${measure.label} ${number(scan[measure.name])} ${measure.unit}`}</small>
    <span class="badges">${badges.map(([text, kind, title]) =>
    html`<span class="badge ${kind}" title="${title}">${text}</span>`)}</span></span></button>`;
}

const HEADS = [["name", "Scan"], ["dataset", "Data set"], ["modality", "Modality"], ["verdict", "Verdict"],
  ["flags", "Flags"], ...DATA.measures.map(measure => [measure.name, labelOf(measure)])];

function tableOf(scans, first) {
  const order = state.up ? ["ascending", "↑"] : ["descending", "↓"];
  return html`<div class="scroll"><table><thead><tr>${HEADS.map(([name, label]) => html`<th scope="col"
    aria-sort="${state.sort === name ? order[0] : "none"}"><button type="button" data-sort="${name}">${label} ${
    state.sort === name && order[1]}</button></th>`)}</tr></thead><tbody>${scans.map((scan, i) => html`<tr><td>
    <button type="button" class="link" data-index="${first + i}">${scan.name}</button></td><td>${scan.dataset}</td>
    <td>${modalityOf(scan)}</td><td>${decisionOf(scan)?.verdict}</td><td>${scan.flags.length || ""}</td>${
    DATA.measures.map(({name}) => html`<td class="${scan.flags.includes(name) && "flag"}">${number(scan[name])}</td>`)
    }</tr>`)}</tbody></table></div>`;
}

function draw(page) {
  state.page = page;
  const first = page * PAGE[state.view], scans = state.shown.slice(first, first + PAGE[state.view]);
  $("scans").innerHTML = !scans.length ? "<p>No scan fits these filters.</p>" : state.view === "table"
    ? tableOf(scans, first) : html`<div class="cards">${scans.map((scan, i) => card(scan, first + i))}</div>`;
  const flagged = state.shown.filter(scan => scan.flags.length).length;
  $("status").textContent = (scans.length ? `${first + 1} to ${first + scans.length} of ` : "")
    + `${count(state.shown.length, "scan")}, ${flagged} flagged (of ${count(measured.length, "scan")} in all).`;
  const turn = (label, to) => html`<button type="button" data-page="${to}" ${
    (to < 0 || to >= pages() || to === page) && "disabled"}>${label}</button>`;
  for (const nav of document.querySelectorAll("nav.pages")) {
    nav.innerHTML = pages() < 2 ? "" : html`${turn("First", 0)}${turn("← Back", page - 1)}<span>page ${page + 1} of ${
      pages()}</span>${turn("Forward →", page + 1)}${turn("Last", pages() - 1)}`;
  }
  drawDecisions();
}

function drawDecisions() {
  const verdicts = decisions().map(row => row.verdict), old = [...edits.keys()].filter(outdated).length;
  const counted = VERDICTS.map(name => `${verdicts.filter(each => each === name).length} ${name}`).join(", ");
  $("text").value = fileText();
  $("discard").disabled = edits.size === 0;
  $("changed").textContent = `${count(verdicts.length, "decision")}: ${counted}. `
    + (edits.size > old ? `${count(edits.size - old, "subject")} changed in this browser; the workflow does not know of it yet. ` : "")
    + (old ? `${count(old, "subject")} changed in this browser and since then in the file, which counts: decide again. ` : "");
}

function sortBy(name, up) {
  Object.assign(state, {sort: name, up});
  $("sort").value = name;
  $("direction").textContent = up ? "↑ ascending" : "↓ descending";
  refresh();
}

// ---------------------------------------------------------------- one scan

const STAGES = {
  skullstrip: ["Raw scan", "with the outline of the brain mask"],
  register: ["On the atlas", "brain, lesion, atlas; at the right the bias field that was removed"],
};

function open(index) {
  const scan = state.shown[index], decision = decisionOf(scan);
  state.open = index;
  $("scan-title").textContent = nameOf(scan);
  $("scan-place").textContent = `${index + 1} of ${state.shown.length}`;
  $("previous").disabled = index === 0;
  $("next").disabled = index === state.shown.length - 1;
  $("pictures").innerHTML = scan.absent ? "<p>This run did not work on this scan. If it was excluded: take the verdict "
    + "back, save the decision file and run the workflow again to have its pictures.</p>" : picturesOf(scan);
  $("measures").innerHTML = measuresOf(scan);
  const form = $("verdict").elements;
  check(decision?.verdict ?? "");
  form.whole.checked = decision?.modality === "*" || scan.modality === "*";
  form.whole.disabled = scan.modality === "*";
  form.reason.value = decision?.reason ?? "";
  form.reviewer.value = decision?.reviewer || state.reviewer || "";
  const by = decision && `${decision.verdict}, by ${decision.reviewer || "unknown"}, ${decision.date || "no date"}`;
  say([by, overtaken(scan)].filter(Boolean).join("; "), overtaken(scan) !== "");
  if (!$("scan").open) $("scan").showModal();
  $("scan").scrollTop = 0;
  $("scan-title").focus({preventScroll: true});
  history.replaceState(null, "", `#${encodeURIComponent(scan.key)}`);
}

function picturesOf(scan) {
  const figure = (title, what, content) => html`<figure><figcaption>${title} <span>${what}</span></figcaption>${content}</figure>`;
  const there = Object.entries(STAGES).filter(([stage]) => DATA.pictures[scan.dataset][stage]);
  return html`${there.map(([stage, [title, what]]) => figure(title, what, html`<a href="${link(stage, scan)}"
    target="_blank" title="open alone"><img decoding="async" src="${link(stage, scan)}"
    alt="${title} of ${nameOf(scan)}: three planes ${what}"></a>`))}${
    figure("Packed", "as the networks see it: brain, lesion", tile(scan, "large"))}`;
}

function measuresOf(scan) {
  const notes = [...items(scan.why).map(text => `Flagged: ${text}`), ...items(scan.warnings).map(text => `Warning: ${text}`)];
  const medians = DATA.medians[scan.dataset]?.[scan.modality] ?? {};
  const flag = name => scan.flags.includes(name);
  const rows = DATA.measures.filter(({name}) => (scan[name] ?? null) !== null).map(measure => html`<tr>
    <th scope="row">${labelOf(measure)}</th><td class="${flag(measure.name) && "flag"}">${number(scan[measure.name])}${
    flag(measure.name) && " ⚑"}</td><td>${number(medians[measure.name])}</td></tr>`);
  return html`<ul>${notes.map(text => html`<li>${text}</li>`)}</ul>${rows.length && html`<table><thead><tr>
    <th scope="col">Measure</th><th scope="col">Scan</th><th scope="col">Median</th></tr></thead><tbody>${rows}</tbody></table>`}`;
}

function check(verdict) {
  for (const radio of $("verdict").elements.verdict) radio.checked = radio.value === verdict;
}

function say(text, bad = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("bad", bad);
}

function saveVerdict() {
  const {verdict, whole, reason, reviewer} = $("verdict").elements;
  if (verdict.value === "exclude" && !reason.value.trim()) {
    say("Say why it is excluded.", true);
    reason.focus();
    return;
  }
  state.reviewer = reviewer.value;
  const kept = decide(state.shown[state.open], whole.checked, verdict.value, reason.value, reviewer.value);
  say(kept ? "Saved in this browser." : "Noted, but this browser stores nothing for files: download the file before you close the page.", !kept);
  draw(state.page); // not filtered anew: the scan would vanish while one looks at it
}

function step(by) {
  const index = state.open + by;
  if (!state.shown[index]) return;
  draw(Math.floor(index / PAGE[state.view]));
  open(index);
}

function onKey(event) {
  const typing = event.target.matches("input:not([type=radio], [type=checkbox]), select, textarea");
  if (!$("scan").open || typing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("[type=radio]") && event.key.startsWith("Arrow")) return;
  const verdict = VERDICTS.find(name => name[0] === event.key);
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
  else if (!verdict) return;
  else {
    check(verdict);
    if (verdict === "exclude") $("reason").focus();
    else saveVerdict();
  }
  event.preventDefault();
}

// ---------------------------------------------------------------- controls

const on = (id, event, action) => $(id).addEventListener(event, action);

function onClick({target}) {
  const {index, sort, page} = target.closest("[data-index], [data-sort], [data-page]")?.dataset ?? {};
  if (index) open(Number(index));
  if (sort) sortBy(sort, state.sort !== sort || !state.up);
  if (page) draw(Number(page));
}

async function loadFile({target}) {
  try {
    const rows = parseFile(await target.files[0].text());
    for (const [subject, found] of bySubject(rows)) edit(subject, found);
    refresh();
    $("said").textContent = `${count(rows.length, "decision")} loaded.`;
  } catch (error) {
    $("said").textContent = `Not loaded: ${error.message}.`;
  }
  target.value = "";
}

document.addEventListener("click", onClick);
document.addEventListener("keydown", onKey);
document.addEventListener("error", ({target}) => { // of a picture
  if (target.matches?.("img")) target.outerHTML = html`<span class="gone">This picture is not there: ${target.getAttribute("src")}</span>`;
}, true);
let typed;
on("search", "input", () => { clearTimeout(typed); typed = setTimeout(refresh, 120); });
for (const id of ["dataset", "modality", "show"]) on(id, "change", () => refresh());
on("tools", "submit", event => event.preventDefault());
on("sort", "change", () => sortBy($("sort").value, state.up));
on("direction", "click", () => sortBy(state.sort, !state.up));
on("view", "click", () => {
  state.view = state.view === "cards" ? "table" : "cards";
  $("view").textContent = state.view === "cards" ? "Table" : "Cards";
  draw(0);
});
on("previous", "click", () => step(-1));
on("next", "click", () => step(1));
on("close", "click", () => $("scan").close());
on("scan", "close", () => {
  history.replaceState(null, "", location.pathname + location.search);
  refresh(state.page);
  (document.querySelector(`[data-index="${state.open}"]`) || $("search")).focus({preventScroll: true});
});
on("verdict", "submit", event => { event.preventDefault(); saveVerdict(); });
on("download", "click", () => {
  const address = URL.createObjectURL(new Blob([fileText()], {type: "text/tab-separated-values"}));
  Object.assign(document.createElement("a"), {href: address, download: $("download").dataset.name}).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
});
on("copy", "click", () => {
  document.querySelector("#decisions details").open = true;
  $("text").select();
  $("said").textContent = document.execCommand("copy") ? "Copied." : "The text is selected below: copy it.";
});
on("load", "change", loadFile);
on("discard", "click", () => {
  if (!confirm("Discard the verdicts that were given in this browser?")) return;
  edits.clear();
  storeEdits();
  refresh();
});
loadEdits();
refresh();
const linked = state.shown.findIndex(scan => scan.key === decodeURIComponent(location.hash.slice(1)));
if (linked >= 0) {
  draw(Math.floor(linked / PAGE[state.view]));
  open(linked);
}
