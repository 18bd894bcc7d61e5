// Links of the page lead to the service if the report knows where it is; else they are plain text.

/** Keep the links in `root` right, also those that appear later. */
export function keepLinksInside(root, address) {
  const correct = () => {
    for (const link of root.querySelectorAll("a[href^='#/']")) {
      if (address) {
        link.setAttribute("href", `${address}/${link.getAttribute("href")}`);
        link.setAttribute("target", "_blank");
        link.setAttribute("rel", "noopener noreferrer");
      } else link.removeAttribute("href");
    }
  };
  new MutationObserver(correct).observe(root, { childList: true, subtree: true });
  root.classList.toggle("alone", !address);
}
