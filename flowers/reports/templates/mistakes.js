// report.html: some mistakes at first, all of them on request, or those of a cell of the confusion matrix.
const gallery = document.querySelector("#mistakes .gallery");
const mistakes = [...gallery.querySelectorAll("figure")];
const cells = [...document.querySelectorAll("#matrix button")];
const everything = document.getElementById("mistakes-all");
const atFirst = Number(gallery.dataset.atFirst);

function show(chosen, said) {
  for (const figure of mistakes) figure.hidden = !chosen.includes(figure);
  document.getElementById("mistakes-shown").textContent = mistakes.length ? said : "";
  everything.hidden = chosen.length === mistakes.length;
}

for (const cell of cells) {
  cell.addEventListener("click", () => {
    for (const other of cells) other.setAttribute("aria-pressed", other === cell);
    const chosen = mistakes.filter(figure => figure.dataset.pair === cell.dataset.pair);
    show(chosen, `${cell.title}: ${chosen.length} of ${cell.textContent}`);
    document.getElementById("mistakes").scrollIntoView();
  });
}
everything.addEventListener("click", () => {
  for (const cell of cells) cell.setAttribute("aria-pressed", false);
  show(mistakes, `all ${mistakes.length}`);
});
const first = mistakes.slice(0, atFirst);
show(first, first.length < mistakes.length ? `${first.length} of ${mistakes.length}` : "");
