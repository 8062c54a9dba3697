// The table of answers: the columns and cells of jobs/predict.py (flowers/prediction/rows.py), RFC 4180.

const DECIMALS = 6;

/** Class indices of the highest probabilities, best first; of equal ones the lower index first. */
export function bestClasses(probs, topk) {
  return [...probs.keys()].sort((a, b) => probs[b] - probs[a] || a - b).slice(0, topk);
}

/** "ok", "unsure" or "error". */
export function statusOf(answer, minProb) {
  if (answer.error) return "error";
  return answer.guesses[0].prob < minProb ? "unsure" : "ok";
}

/**
 * @param {{path: string, error?: string, guesses?: {label: string, folder: string, prob: number}[]}[]} answers
 * @returns {string} the CSV, rows in the order of their paths.
 */
export function toCsv(answers, topk, minProb) {
  const header = ["path", "status", "label", "class", "prob"];
  for (let rank = 2; rank <= topk; rank++) header.push(`label_${rank}`, `class_${rank}`, `prob_${rank}`);
  const rows = [...answers].sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0)).map((answer) => {
    const guesses = answer.error
      ? Array(3 * topk).fill("")
      : answer.guesses.flatMap(({ label, folder, prob }) => [cell(label), cell(folder), prob.toFixed(DECIMALS)]);
    return [cell(answer.path.replaceAll("\\", "\\\\")), statusOf(answer, minProb), ...guesses, cell(answer.error ?? "")];
  });
  return [[...header, "error"], ...rows].map((row) => row.join(",") + "\r\n").join("");
}

function cell(text) {
  return /[,"\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
}
