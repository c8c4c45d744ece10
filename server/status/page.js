// Reloads the page's content every two seconds, and shows when the server does not answer.

async function reload() {
  try {
    const answer = await fetch("/");
    if (!answer.ok) throw new Error(await answer.text());
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    update(document.getElementById("page"), fresh.getElementById("page"));
  } catch {
    document.getElementById("updated").textContent = "this page's server does not answer; the figures are not up to date";
  }
}

// Makes `old` equal to `fresh` but keeps its nodes, so that focus and scrolling stay. Elements that
// follow an optional one have an id, by which they are matched.
function update(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  let at = old.firstChild;
  for (const child of fresh.childNodes) {
    const kept = child.id ? [...old.children].find((one) => one.id === child.id) : alike(at, child) && at;
    if (!kept) {
      old.insertBefore(document.importNode(child, true), at);
      continue;
    }
    while (at !== kept) at = removed(at);
    update(kept, child);
    at = kept.nextSibling;
  }
  while (at) at = removed(at);
}

function alike(one, other) {
  return one && one.nodeName === other.nodeName && !one.id;
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

setInterval(reload, 2000);
