// Judging labels and answers: keys or buttons, judgements kept in localStorage, saved as a CSV. Names only ever become text.
const at = id => document.getElementById(id);
const same = text => text.normalize("NFKD").toLocaleLowerCase();
// By path: a class number, "keep" or "remove". "order" is what undo takes back.
let state = {judged: {}, order: [], place: 0};
try {
  const kept = JSON.parse(localStorage.getItem(data.key));
  if (kept && kept.judged && Array.isArray(kept.order)) state = kept;
} catch { /* no storage here, or not ours: begin anew */ }
state.place = Math.min(Math.max(0, state.place | 0), data.photos.length - 1);

function keep() {
  try { localStorage.setItem(data.key, JSON.stringify(state)); } catch { at("state").textContent = "This browser keeps nothing: save before you leave. "; }
}

const nameOf = index => {
  const one = data.classes[index];
  return one.label === one.folder ? one.label : `${one.label} (${one.folder})`;
};

function showExamples(target, index, photo) {
  const others = (data.examples[index] ?? []).filter(picture => picture !== photo.picture);
  target.replaceChildren(...others.map(picture => Object.assign(document.createElement("img"), {src: data.pictures[picture], alt: `example of ${data.classes[index].label}`})));
}

function show() {
  const photo = data.photos[state.place], verdict = state.judged[photo.path];
  const src = data.pictures[photo.picture];
  at("photo").hidden = src === null;
  at("none").hidden = src !== null;
  at("photo").src = src ?? "data:,";
  at("photo").alt = photo.path;
  at("path").textContent = photo.path;
  at("why").textContent = photo.why;
  at("given").textContent = nameOf(photo.given);
  at("suggested").textContent = photo.suggested === null ? "" : nameOf(photo.suggested);
  at("suggested").parentElement.hidden = photo.suggested === null;
  showExamples(at("given-examples"), photo.given, photo);
  showExamples(at("suggested-examples"), photo.suggested, photo);
  const acts = {keep: verdict === "keep", take: verdict === photo.suggested, remove: verdict === "remove", other: typeof verdict === "number" && verdict !== photo.suggested};
  for (const button of document.querySelectorAll("[data-act]")) button.setAttribute("aria-pressed", acts[button.dataset.act]);
  document.querySelector("[data-act=take]").disabled = photo.suggested === null;
  const judged = data.photos.filter(one => one.path in state.judged).length;
  at("progress").value = judged;
  const now = verdict === undefined ? "not judged" : verdict === "keep" ? "kept" : verdict === "remove" ? "left out" : `now ${nameOf(verdict)}`;
  at("state").textContent = `Photo ${state.place + 1} of ${data.photos.length}, ${now}; ${judged} judged`;
}

function move(step) {
  state.place = Math.min(Math.max(0, state.place + step), data.photos.length - 1);
  keep();
  show();
}

function judge(verdict) {
  const path = data.photos[state.place].path;
  state.order.push([state.place, state.judged[path] ?? null]);
  state.judged[path] = verdict;
  move(1);
}

function undo() {
  const last = state.order.pop();
  if (!last) return;
  const [place, before] = last, path = data.photos[place].path;
  if (before === null) delete state.judged[path]; else state.judged[path] = before;
  state.place = place;
  keep();
  show();
}

function save() {
  const rows = new Map(data.earlier);
  for (const photo of data.photos) {
    const verdict = state.judged[photo.path];
    if (verdict === undefined) continue;
    const own = verdict === "keep" ? photo.given : verdict;
    if (verdict === "remove") rows.set(photo.path, "-");
    else if (own !== photo.given || data.confirms) rows.set(photo.path, data.classes[own].folder);
  }
  const cell = text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const lines = ["path,class", ...[...rows].map(row => row.map(cell).join(","))];
  const url = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], {type: "text/csv"}));
  Object.assign(document.createElement("a"), {href: url, download: "corrections.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// The search for another class: typed words filter, arrows choose, Enter takes the choice.
const dialog = at("search"), wanted = at("wanted"), choices = at("choices");
let chosen = 0;

function filterChoices() {
  const text = same(wanted.value.trim());
  const found = data.classes.map((_, index) => index).filter(index => same(nameOf(index)).includes(text));
  found.sort((a, b) => same(data.classes[b].label).startsWith(text) - same(data.classes[a].label).startsWith(text));
  choices.replaceChildren(...found.slice(0, 100).map(index => {
    const button = Object.assign(document.createElement("button"), {type: "button", tabIndex: -1, textContent: nameOf(index)});
    button.addEventListener("click", () => { dialog.close(); judge(index); });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
  choose(0);
}

function choose(place) {
  const buttons = [...choices.querySelectorAll("button")];
  chosen = Math.min(Math.max(0, place), buttons.length - 1);
  buttons.forEach((button, index) => button.setAttribute("aria-selected", index === chosen));
  buttons[chosen]?.scrollIntoView({block: "nearest"});
}

wanted.addEventListener("input", filterChoices);
wanted.addEventListener("keydown", event => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    choose(chosen + (event.key === "ArrowDown" ? 1 : -1));
  } else if (event.key === "Enter") {
    event.preventDefault();
    choices.querySelectorAll("button")[chosen]?.click();
  }
});

function search() {
  wanted.value = "";
  filterChoices();
  dialog.showModal();
  wanted.focus();
}

const acts = {keep: () => judge("keep"), take: () => data.photos[state.place].suggested === null || judge(data.photos[state.place].suggested), other: search, remove: () => judge("remove")};
const keys = {1: acts.keep, 2: acts.take, 3: acts.other, 4: acts.remove, ArrowLeft: () => move(-1), ArrowRight: () => move(1), u: undo, s: save};
document.addEventListener("keydown", event => {
  if (dialog.open || event.ctrlKey || event.metaKey || event.altKey) return;
  // Other fields take their keys. The dialog's keeps the focus until the page is drawn without it, but takes none then.
  const field = event.target.closest("input, select, textarea");
  if (field && field !== wanted) return;
  const {top, bottom} = at("judge").getBoundingClientRect();
  if (bottom < 0 || top > innerHeight) return; // nobody judges what is not on the screen
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", acts[button.dataset.act]);
at("back").addEventListener("click", () => move(-1));
at("next").addEventListener("click", () => move(1));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
show();
