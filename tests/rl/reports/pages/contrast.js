// Every text whose contrast with the ground it stands on is below 4.5: [contrast, class, beginning of the text].
(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = '#000'; canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = node => { const layers = []; for (let one = node; one; one = one.parentElement) { const c = rgba(getComputedStyle(one).backgroundColor); layers.push(c); if (c[3] > 0.999) break; }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]); };
  const worst = [];
  for (const node of document.querySelectorAll('body *')) {
    const svg = node instanceof SVGTextElement;
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || (!svg && !node.checkVisibility()) || node.closest('script, style, noscript, .unseen, option')) continue;
    const style = getComputedStyle(node), under = ground(svg ? node.closest('.chart') : node);
    const colour = over(rgba(svg ? style.fill : style.color), under), [a, b] = [light(colour), light(under)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) worst.push([Math.round(ratio * 100) / 100, node.className.baseVal ?? node.className, node.textContent.slice(0, 40)]);
  }
  return worst;
})()
