// what scrolls is reached by keyboard; the two side bars have names of their own
addEventListener('DOMContentLoaded', () => {
  if (!document.querySelector('h1')) {
    const title = document.createElement('h1') // of the search's page
    title.textContent = 'Search'
    document.querySelector('[role="main"]')?.prepend(title)
  }
  for (const box of document.querySelectorAll('pre, .table-wrapper, .picture, .formula, .sidebar-scroll, .toc-scroll')) box.tabIndex = 0
  document.querySelectorAll('.sidebar-tree .caption').forEach(one => one.setAttribute('aria-level', 2))
  document.querySelector('aside.sidebar-drawer')?.setAttribute('aria-label', 'Pages')
  document.querySelector('aside.toc-drawer')?.setAttribute('aria-label', 'On this page')
})
