// Which downloads are whole. Those go on to be written; what is wrong with the others goes with each of them.
const files = $('Files').all();
const answers = $input.all();

function faultOf(answer, file) {
  const { statusCode, headers = {} } = answer.json;
  if (statusCode === 404) return 'ComfyUI does not have the file any more (404)';
  if (statusCode !== 200 || !answer.binary?.data)
    return statusCode ? `status ${statusCode}` : errorIn(answer.json) || 'no answer';
  if (/^text\/html/.test(headers['content-type'] ?? '') && !/\.html?$/i.test(file.filename))
    return 'a web page came instead of the file';
  const length = headers['content-encoding'] ? undefined : headers['content-length'];
  const bytes = answer.binary.data.bytes;
  if (length !== undefined && bytes !== undefined && Number(length) !== bytes)
    return `${bytes} of ${length} bytes came`;
  return null;
}

const whole = [];
const faults = [];
answers.forEach((answer, index) => {
  const file = files[index].json;
  const reason = faultOf(answer, file);
  if (reason !== null) faults.push({ filename: file.filename, reason, gone: answer.json.statusCode === 404 });
  else
    whole.push({
      json: {
        ...file,
        bytes: answer.binary.data.bytes ?? Number(answer.json.headers['content-length']),
        media_type: mediaType(file.filename) ?? answer.binary.data.mimeType,
      },
      binary: answer.binary,
      pairedItem: { item: index },
    });
});
if (!whole.length) return [{ json: { none: true, faults } }];
return whole.map((item) => ({ ...item, json: { ...item.json, faults } }));
