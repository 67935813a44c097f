// What a reader sees of a page, asked of the page itself: all texts with their contrast (WCAG 2.2, 1.4.3) against what is
// painted behind them and their size in pixels of the screen, all drawings, and words that their drawing's edge cuts off.
(() => {
  const parse = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return parts.length < 4 ? [...parts.slice(0, 3), 1] : parts;
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const light = (rgb) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb.slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const style = getComputedStyle(e);
      if (!(e instanceof SVGElement)) layers.push(parse(style.backgroundColor));
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const faint = (element) => {
    let opacity = 1;
    for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
    return opacity;
  };
  const texts = [], cut = [];
  const tell = (element, words, colour, size, bold) => {
    const ground = behind(element);
    colour[3] *= faint(element);
    const [a, b] = [light(over(colour, ground)), light(ground)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = size >= 24 || (bold && size >= 18.66);
    texts.push({ words: words.slice(0, 40), contrast, enough: contrast >= (large ? 3 : 4.5), size });
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || element.closest("script, style, title")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width === 0 || box.height === 0) continue;
    const style = getComputedStyle(element), svg = element.closest("svg");
    if (element.closest("thead") && style.clipPath !== "none") continue;
    let size = parseFloat(style.fontSize);
    const colour = parse(svg ? style.fill : style.color);
    if (svg) {
      const place = element.getScreenCTM(), frame = svg.getBoundingClientRect();
      size *= Math.hypot(place.a, place.b);
      colour[3] *= Number(style.fillOpacity);
      const out = Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom);
      if (out > 2 && !svg.matches(".interval")) cut.push(node.textContent); // those may hang over: overflow is visible
    }
    tell(element, node.textContent.trim(), colour, size, Number(style.fontWeight) >= 700);
  }
  for (const field of document.querySelectorAll("input[placeholder]")) {
    const style = getComputedStyle(field, "::placeholder");
    tell(field, field.placeholder, parse(style.color), parseFloat(style.fontSize), false);
  }
  const drawings = Array.from(document.querySelectorAll("svg"), (svg) => {
    const box = svg.getBoundingClientRect();
    const shapes = Array.from(svg.querySelectorAll("path, line, circle")).filter((shape) => {
      const own = shape.getBBox();
      return !shape.closest("defs, clipPath") && own.width + own.height > 0;
    });
    return { name: svg.querySelector("title").textContent.slice(0, 60), area: box.width * box.height, shapes: shapes.length };
  });
  return { texts, cut, drawings };
})()
