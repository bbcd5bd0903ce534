// SHA-256 of a text in UTF-8, as hex digits: a Code node has no crypto.
function sha256(text) {
  const input = Buffer.from(text, 'utf8');
  const size = Math.ceil((input.length + 9) / 64) * 64;
  const data = Buffer.alloc(size);
  input.copy(data);
  data[input.length] = 0x80;
  data.writeBigUInt64BE(BigInt(input.length) * 8n, size - 8);
  const state = firstBits(8, 1 / 2);
  const constants = firstBits(64, 1 / 3);
  const words = new Uint32Array(64);
  for (let block = 0; block < size; block += 64) {
    for (let i = 0; i < 16; i++) words[i] = data.readUInt32BE(block + 4 * i);
    for (let i = 16; i < 64; i++) {
      const [a, b] = [words[i - 15], words[i - 2]];
      words[i] =
        words[i - 16] +
        words[i - 7] +
        (turned(a, 7) ^ turned(a, 18) ^ (a >>> 3)) +
        (turned(b, 17) ^ turned(b, 19) ^ (b >>> 10));
    }
    mix(state, words, constants);
  }
  return [...state].map((word) => word.toString(16).padStart(8, '0')).join('');
}

function mix(state, words, constants) {
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const one =
      (h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + words[i]) | 0;
    const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
  }
  [a, b, c, d, e, f, g, h].forEach((word, i) => {
    state[i] += word;
  });
}

function turned(word, bits) {
  return (word >>> bits) | (word << (32 - bits));
}

// The first 32 bits of the fractions of a root of the first primes: what FIPS 180-4 takes its constants from.
function firstBits(count, power) {
  const bits = new Uint32Array(count);
  for (let number = 2, found = 0; found < count; number++) {
    let prime = true;
    for (let factor = 2; factor * factor <= number; factor++) if (number % factor === 0) prime = false;
    if (prime) bits[found++] = (number ** power % 1) * 2 ** 32;
  }
  return bits;
}
