// Did somebody get it? If not, the next one of this cause is sent again, and this execution fails.
const { reached, failed } = ways();
const { cause } = $('Cause').first().json;
const { sent_at, times } = $('Limit').first().json;
const lost = failed.length > 0 && reached === 0;
if (lost) {
  const memory = $getWorkflowStaticData('global');
  const own = memory.causes?.[cause];
  if (own) memory.causes = { ...memory.causes, [cause]: { ...own, sent: null, suppressed: own.suppressed + times } };
}
const problem = failed.length ? `an alert was not delivered. ${failed.join('; ')}` : '';
return [{ json: { problem, lost: JSON.stringify({ cause, sent_at: lost ? sent_at : null, times }) } }];
