// The gallery of predictions.html: filters and orders all photos, shows a few of them, and more on request.
// Names only ever become text or attributes, never markup.
const AT_ONCE = 60;
const statuses = new Map(["unsure", "unfamiliar", "damaged"].flatMap(status => data[status].map(photo => [photo, status])));
const form = document.getElementById("filters"), photos = document.getElementById("photos");
const more = document.getElementById("more"), shown = document.getElementById("shown");
let found = [];

const percent = share => `${(100 * share).toFixed(1)}%`;

// The address of a photo. In names a backslash stands as \\, a byte that is no UTF-8 as \xNN.
function address(path) {
  if (data.base === null || /\.(tar|zip)\//i.test(path)) return null;
  const parts = path.split(/(\\\\|\\x[0-9a-f]{2})/).map(part =>
    part === "\\\\" ? "%5C" : /^\\x/.test(part) ? `%${part.slice(2)}` : part.split("/").map(encodeURIComponent).join("/"));
  return (path.startsWith("/") ? "" : data.base) + parts.join("");
}

function element(name, text, attributes = {}) {
  const made = Object.assign(document.createElement(name), attributes);
  if (text !== null) made.textContent = text;
  return made;
}

function card(photo) {
  const path = data.paths[photo], src = data.pictures[photo], target = address(path);
  const words = src === null ? "cannot be read any more" : "no picture kept";
  const picture = src ? element("img", null, {src, alt: path}) : element("p", words, {className: "none note"});
  const figure = element("figure", null, {className: statuses.get(photo) ?? "", title: path});
  figure.append(target === null ? picture : element("a", null, {href: target}));
  if (target !== null) figure.firstChild.append(picture);
  const caption = element("figcaption", `${data.classes[data.answers[photo]].label} ${percent(data.probs[photo])}`);
  if (data.seconds[photo] >= 0) {
    const second = `${data.classes[data.seconds[photo]].label} ${percent(data.second_probs[photo])}`;
    caption.append(element("br", null), element("span", second, {className: "note"}));
  }
  caption.append(element("br", null), element("span", path, {className: "note path"}));
  figure.append(caption);
  return figure;
}

function showMore() {
  const from = photos.childElementCount;
  photos.append(...found.slice(from, from + AT_ONCE).map(card));
  const count = photos.childElementCount;
  more.hidden = count >= found.length;
  shown.textContent = found.length ? `${count.toLocaleString()} of ${found.length.toLocaleString()}` : "No photo is like that.";
}

function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const low = wanted.low === "" ? 0 : wanted.low / 100, high = wanted.high === "" ? 1 : wanted.high / 100;
  const text = wanted.path.trim().toLocaleLowerCase();
  found = [];
  for (let photo = 0; photo < data.paths.length; photo++) {
    if (wanted.class !== "" && data.answers[photo] !== Number(wanted.class)) continue;
    if (wanted.status !== "" && (statuses.get(photo) ?? "ok") !== wanted.status) continue;
    if (data.probs[photo] < low || data.probs[photo] > high) continue;
    if (wanted.pictures && !data.pictures[photo]) continue;
    if (text && !data.paths[photo].toLocaleLowerCase().includes(text)) continue;
    found.push(photo);
  }
  if (wanted.order === "high") found.reverse();
  if (wanted.order === "path") found.sort((a, b) => data.paths[a] < data.paths[b] ? -1 : 1);
  photos.replaceChildren();
  showMore();
}

form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", event => event.preventDefault());
more.addEventListener("click", showMore);
for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    form.reset();
    form.elements.class.value = button.dataset.show;
    filter();
    document.getElementById("gallery").scrollIntoView();
  });
}
filter();
