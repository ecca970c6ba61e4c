"use strict";

// What a score looks like and what it means: its colour, its sign, its rank. The same for all scans of the page.

const INFINITE = "∞";

function medianOf(scores) {
  const sorted = Float64Array.from(scores).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** The sign that stands in a cell instead of a colour; empty for none. isVector: every layer of the row scores 1. */
function signOf(score, isVector) {
  return isVector ? "1" : score <= 0 ? "0" : score === Infinity ? INFINITE : "";
}

/** A colour scale, logarithmic, over the scores of the cells that have a colour: {low, high, colourOf, inkOn}.
 * colourOf(score) -> [red, green, blue]; a score beyond an end has the colour of that end. */
function colourScale(colours, scores) {
  const finite = scores.filter((score) => score > 0 && score < Infinity);
  let [low, high] = finite.reduce(([a, b], score) => [Math.min(a, score), Math.max(b, score)], [Infinity, 0]);
  if (low >= high) {
    [low, high] = [low / 1.1, high * 1.1]; // a scale needs two ends
  }
  const stops = colours.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
  const [first, width] = [Math.log(low), Math.log(high) - Math.log(low)];
  const place = (score) => Math.min(Math.max((Math.log(score) - first) / width, 0), 1);
  const colourOf = (score) => {
    const at = place(score) * (stops.length - 1);
    const [below, above] = [stops[Math.floor(at)], stops[Math.ceil(at)]];
    return below.map((value, i) => Math.round(value + (above[i] - value) * (at % 1)));
  };
  return { low, high, place, colourOf, isEmpty: !finite.length };
}

/** Black or white, whichever is read more easily on a colour. */
function inkOn([red, green, blue]) {
  const [r, g, b] = [red, green, blue].map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

/** Four to eight round numbers in a range; its ends and middle if the range is too narrow for four. */
function logTicks(low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    powers.push(power);
  }
  for (const digits of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
    const ticks = powers.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
    const inside = ticks.filter((tick) => low <= tick && tick <= high);
    if (inside.length > 3) {
      const step = Math.ceil(inside.length / 8);
      return inside.filter((_, i) => i % step === 0);
    }
  }
  return [low, Math.sqrt(low) * Math.sqrt(high), high];
}

/** Where each layer of a scan stands among the scores of its type, from 1 on; equal scores share a rank: {rankOf, numTied},
 * by layer. numTied: how many layers of the type have this score. */
function scoreRanks(scan) {
  const [rankOf, numTied] = [0, 1].map(() => new Uint32Array(scan.layers.name.length));
  for (const type of scan.types) {
    const layers = Array.from(type.ranked).sort((a, b) => scoreAt(scan, b) - scoreAt(scan, a) || 0);
    for (let i = 0, end; i < layers.length; i = end) {
      for (end = i; end < layers.length && scoreAt(scan, layers[end]) === scoreAt(scan, layers[i]); end++);
      for (const layer of layers.slice(i, end)) {
        rankOf[layer] = i + 1;
        numTied[layer] = end - i;
      }
    }
  }
  return { rankOf, numTied };
}

function scoreAt(scan, layer) {
  return scoreOf(scan.layers.snr[layer]);
}

/** The layers at each place of the heat map: places[row][column] is an array of layers, or undefined. */
function layersAtPlaces(scan) {
  const places = scan.rows.map(() => Array(scan.columns.length).fill(undefined));
  scan.layers.row.forEach((row, layer) => {
    (places[row][scan.layers.column[layer]] ||= []).push(layer);
  });
  return places;
}
