// Photos as people hand them over: chosen, dropped (folders too) or pasted, each as {path, file}.

/** Files of a file field; with a folder, those that are named like photos, by their path within it. */
export function chosen(files, extensions) {
  return [...files]
    .map((file) => ({ file, path: file.webkitRelativePath.split("/").slice(1).join("/") || file.name }))
    .filter(({ file, path }) => !file.webkitRelativePath || isNamedLikeAPhoto(path, extensions));
}

/** What was dropped or pasted; of a single folder paths are relative to it, as in predict.py. */
export async function handedOver(transfer, extensions) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files].map((file) => ({ file, path: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, entries.length === 1 ? "" : entry.name, extensions, found);
  return found;
}

async function walk(entry, path, extensions, found) {
  if (entry.isFile) {
    if (!isNamedLikeAPhoto(path, extensions)) return;
    found.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  const reader = entry.createReader();
  for (;;) { // in portions, of which the last one is empty
    const portion = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!portion.length) return;
    for (const child of portion) await walk(child, path ? `${path}/${child.name}` : child.name, extensions, found);
  }
}

function isNamedLikeAPhoto(path, extensions) {
  return extensions.some((extension) => path.toLowerCase().endsWith(extension));
}
