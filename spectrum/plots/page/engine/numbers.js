"use strict";

// Numbers and names as the command writes them: Python's spelling, digit for digit.

/** A score of the data. Infinity is text there, since JSON has no such number. */
const scoreOf = (value) => (typeof value === "number" ? value : value === "inf" ? Infinity : NaN);

/** Python's f"{x:.<digits>g}": so many significant digits, the last rounded half to even. The data's `inf` stays. */
function formatNumber(x, digits) {
  if (typeof x === "string") return x;
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x < 0 ? "-inf" : "inf";
  if (x === 0) return Object.is(x, -0) ? "-0" : "0";
  const [mantissa, exponent] = roundedHalfToEven(x, digits).split("e");
  return layOut(mantissa, Number(exponent), digits).replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");
}

/** `toExponential` with so many significant digits. JavaScript rounds a number halfway up, Python to an even digit. */
function roundedHalfToEven(x, digits) {
  const exact = x.toExponential(100);
  const [, sign, first, rest, exponent] = /^(-?)(\d)\.(\d+)e(.*)$/.exec(exact);
  const kept = first + rest.slice(0, digits - 1);
  if (!/^50*$/.test(rest.slice(digits - 1)) || Number(kept.at(-1)) % 2 === 1) return x.toExponential(digits - 1);
  return `${sign}${kept[0]}.${kept.slice(1)}e${exponent}`;
}

/** Digits with their exponent in the notation that Python chooses. An exponent has two digits or more. */
function layOut(mantissa, exponent, precision) {
  const [sign, digits] = mantissa[0] === "-" ? ["-", mantissa.slice(1)] : ["", mantissa];
  const bare = digits.replace(".", "");
  if (exponent < -4 || exponent >= precision) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return `${sign}${digits}e${exponent < 0 ? "-" : "+"}${size}`;
  }
  if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${bare}`;
  const whole = bare.slice(0, exponent + 1).padEnd(exponent + 1, "0");
  return bare.length > exponent + 1 ? `${sign}${whole}.${bare.slice(exponent + 1)}` : sign + whole;
}

/** Python's repr of a finite float: `25.0`, `1e-05`. */
function pythonFloat(x) {
  if (x === 0) return Object.is(x, -0) ? "-0.0" : "0.0";
  const [mantissa, exponent] = x.toExponential().split("e");
  const text = layOut(mantissa, Number(exponent), 16);
  return /[.e]/.test(text) ? text : `${text}.0`;
}

/** Python's JSON text of a text: other characters than those of ASCII are escaped. */
const jsonText = (text) =>
  /^[\w./-]*$/.test(text)
    ? `"${text}"` // as most names are
    : JSON.stringify(text).replace(
        /[^ -~]/g,
        (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
      );

/** The first few names, and how many more there are: `a, b and 3 more`. */
const listedNames = (names, limit) =>
  names.slice(0, limit).join(", ") + (names.length > limit ? ` and ${names.length - limit} more` : "");

/** Python's re.escape. */
const escapedPattern = (text) => text.replace(/[()[\]{}?*+\-|^$\\.&~# \t\n\r\v\f]/g, "\\$&");
