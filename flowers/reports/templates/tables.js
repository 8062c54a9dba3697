// table.sortable: a click or Enter on a heading's button sorts, again the other way round. A cell's data-value goes
// before its text. input[data-filters=ID]: shows the rows of that table whose text holds what is typed.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (button) button.addEventListener("click", () => {
      const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
      const numeric = rows.every(([value]) => value !== "" && !isNaN(value));
      rows.sort(([a], [b]) => direction * (numeric ? a - b : a.localeCompare(b, undefined, {numeric: true})));
      table.tBodies[0].append(...rows.map(([, row]) => row));
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    });
  });
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const count = document.getElementById(input.dataset.filters + "-count");
  const filter = () => {
    const wanted = input.value.trim().toLocaleLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    if (count) count.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  filter();
}
// .scroll: where columns lie beyond the right edge, a line says so until they have been scrolled to.
for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "More columns to the right: scroll sideways \u2192";
  hint.setAttribute("aria-hidden", true);
  box.before(hint);
  const look = () => {
    const more = box.scrollLeft + box.clientWidth < box.scrollWidth - 2;
    hint.hidden = box.scrollWidth <= box.clientWidth + 2;
    box.classList.toggle("more", more);
  };
  box.addEventListener("scroll", look, {passive: true});
  addEventListener("resize", look);
  look();
}
