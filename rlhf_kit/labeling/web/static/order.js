// Ranks as places: {A: 1, B: 2, C: 2}; 1 is best, equal ranks are a tie, an answer without a rank is not in it.

// The answers of each place, best first: [["A"], ["B", "C"]].
export function places(ranks) {
  const used = [...new Set(Object.values(ranks))].sort((a, b) => a - b);
  return used.map((rank) => Object.keys(ranks).filter((key) => ranks[key] === rank));
}

const counted = (groups) =>
  Object.fromEntries(groups.filter((keys) => keys.length > 0).flatMap((keys, i) => keys.map((key) => [key, i + 1])));

// `key` gets a place of its own behind all that have `rank` or a better one; the others make room.
export function insert(ranks, key, rank) {
  const others = Object.fromEntries(Object.entries(ranks).filter(([other]) => other !== key));
  const better = Object.fromEntries(Object.entries(others).filter(([, own]) => own <= rank));
  const worse = Object.fromEntries(Object.entries(others).filter(([, own]) => own > rank));
  return counted([...places(better), [key], ...places(worse)]);
}

// Half a place up (-1) or down (+1): out of a tie to a place of its own, from there into the tie with the next.
export function step(ranks, key, direction) {
  if (ranks[key] === undefined) return insert(ranks, key, Infinity);
  const groups = places(ranks);
  const at = groups.findIndex((keys) => keys.includes(key));
  if (groups[at].length > 1) {
    const rest = groups[at].filter((other) => other !== key);
    groups.splice(at, 1, ...(direction < 0 ? [[key], rest] : [rest, [key]]));
  } else if (groups[at + direction] !== undefined) {
    groups[at + direction] = [...groups[at + direction], key];
    groups.splice(at, 1);
  }
  return counted(groups);
}

// The first two answers whose ranks and marks say the opposite of each other: [better by rank, better by mark].
export function contradiction(ranks, marks) {
  const keys = Object.keys(ranks).filter((key) => marks[key] !== undefined);
  for (const one of keys) {
    const other = keys.find((key) => ranks[one] < ranks[key] && marks[one] < marks[key]);
    if (other !== undefined) return [one, other];
  }
  return null;
}
