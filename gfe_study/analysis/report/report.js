// Charts, if the page has the library; tables that are sorted by a click on a heading and filtered by a text.
for (const box of document.querySelectorAll(".chart")) {
  const chart = JSON.parse(box.querySelector("script").textContent)
  vegaEmbed(box, chart, {renderer: "svg", actions: false}).catch(error => { box.textContent = String(error) })
}

function value(row, place) {
  const text = row.cells[place].textContent.trim()
  const number = Number(text.replaceAll(",", "").replace("−", "-"))
  return text === "" ? null : Number.isNaN(number) ? text : number
}

function compare(one, other) {  // what is missing comes last
  if (one === null || other === null) return (one === null) - (other === null)
  return typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other))
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells]
  heads.forEach((head, place) => {
    head.tabIndex = 0
    const sort = () => {
      const down = head.ariaSort === "ascending"
      heads.forEach(each => each.removeAttribute("aria-sort"))
      head.ariaSort = down ? "descending" : "ascending"
      const rows = [...body.rows].map(row => [value(row, place), row])
      rows.sort(([one], [other]) => one === null || other === null ? compare(one, other) : (down ? -1 : 1) * compare(one, other))
      body.append(...rows.map(([, row]) => row))
    }
    head.addEventListener("click", sort)
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort() })
  })
  const filter = table.closest("section").querySelector("input[type=search]")
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean)
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase()
      row.hidden = !words.every(word => text.includes(word))
    }
  })
}
