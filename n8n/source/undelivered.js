const { problem } = $('Told').first().json;
const away = $input.first()?.json.recorded === true ? '' : '; the database does not answer either';
return [{ json: { problem: `${problem}${away}` } }];
