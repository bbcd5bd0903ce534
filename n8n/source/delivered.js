// Did somebody get it? If not, it is sent again with the next check, and this execution fails: n8n shows that.
const { reached, failed, none } = ways();
const memory = $getWorkflowStaticData('global');
const text = $('Watch').first().json.text;
if (reached || none) memory.outbox = [];
if (none) return [{ json: { problem: `${text} (Config names nobody who gets this as a message.)` } }];
const problem = failed.length ? `the message "${cleaned(text, 100)}" was not delivered. ${failed.join('; ')}` : '';
return [{ json: { problem } }];
