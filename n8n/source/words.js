// Messages for people: short, in one line, without secrets.

const CODES = {
  ECONNREFUSED: 'connection refused',
  ECONNRESET: 'connection reset',
  ECONNABORTED: 'no answer in time',
  ETIMEDOUT: 'no answer in time',
  ENOTFOUND: 'no such host',
  EAI_AGAIN: 'no such host for now',
  EHOSTUNREACH: 'no way to the host',
};

// What went wrong, of whatever shape n8n gives it, as one line without what may be secret in it.
function cleaned(value, limit = 300) {
  const texts = [value, value?.message, value?.description];
  const line = String(texts.find((text) => ['string', 'number'].includes(typeof text) && text !== '') ?? '')
    .replace(/[\u0000-\u0020\u007f]+/g, ' ')
    .replace(/\p{Surrogate}/gu, '\ufffd')
    .replace(/(:\/\/)[^\s/?#]*@/g, '$1')
    .replace(/(\/\/hooks\.[^\s/]+|\/services)\/[^\s"')]+/gi, '$1/***') // of Slack: who has it may post
    .replace(/\b(bearer|basic)\s+[\w.~+/=-]{8,}/gi, '$1 ***')
    .replace(/((?:key|token|secret|passwo?r?d|pwd|signature|authorization)["']?\s*[:=]\s*["']?)[^\s"',;&)}]+/gi, '$1***')
    .trim();
  const letters = [...line];
  if (letters.length <= limit) return line;
  const end = limit < 200 ? 0 : 60; // it may name the job
  return `${letters.slice(0, limit - end - 3).join('')}...${letters.slice(letters.length - end).join('')}`;
}

// What an item with an error says of it. n8n has several shapes for that.
function errorIn(item) {
  const said = cleaned(item?.error?.message ?? item?.message ?? item?.error ?? '', 200);
  // also because Stop And Error replaces a whole text that holds such a code
  return said.replace(/(?:connect |getaddrinfo |read )?\b(E[A-Z_]{4,})\b/g, (whole, code) => CODES[code] ?? whole);
}

// A moment in milliseconds, as a time of today or with its date.
function moment(at, now = Date.now()) {
  const [day, time] = new Date(at).toISOString().split('T');
  const clock = `${time.slice(0, 5)} UTC`;
  return new Date(now).toISOString().startsWith(day) ? clock : `${day} ${clock}`;
}

function count(number, word) {
  return `${number} ${word}${number === 1 ? '' : 's'}`;
}

// A message for both ways. Slack would take <!channel> and links in what others wrote for its own.
function message(subject, text) {
  const plain = text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
  return { send: true, subject, text, slack: JSON.stringify({ text: plain }) };
}
