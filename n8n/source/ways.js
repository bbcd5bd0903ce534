// What became of a message: who of those that are named in Config got it.
function ways() {
  const config = $('Config').first().json;
  const failed = [];
  let reached = 0;
  if (config.slack_webhook_url) {
    const answer = $('Slack').first()?.json ?? {};
    if (answer.statusCode >= 200 && answer.statusCode < 300) reached += 1;
    else failed.push(`Slack: ${answer.statusCode ? `it answered ${answer.statusCode}` : errorIn(answer) || 'no answer'}`);
  }
  if (config.mail_to) {
    const answer = $('E-mail').first()?.json ?? {};
    if (answer.messageId || answer.accepted?.length) reached += 1;
    else failed.push(`e-mail: ${errorIn(answer) || 'it was not sent; is there a credential?'}`);
  }
  return { reached, failed, none: reached + failed.length === 0 };
}
