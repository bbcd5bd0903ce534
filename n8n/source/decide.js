// Behind "Begin": is this job new, is it under way, has it ended?
// The graph stays behind: it may be large, and nodes that need it look there.
const { begin, graph, graph_text, ...job } = $('Prepare job').first().json;
const row = $input.all().pop()?.json ?? {};
const here = row.recorded === true && row.prompt_id != null;

function next(way, more) {
  const prompt_id = here ? row.prompt_id : job.prompt_id;
  return [
    {
      json: {
        next: way,
        ...job,
        prompt_id,
        known: here,
        attempt: 0,
        posts: 0,
        downloads: 0,
        absences: 0,
        started_at: Date.now(),
        state: 'created',
        ...more,
      },
    },
  ];
}

function answer(reply) {
  return next('answer', { reply });
}

if (!here && job.key !== null) {
  return answer(
    failure(
      503,
      'database_unreachable',
      'the database does not answer, so nobody can tell whether this Idempotency-Key was used before: nothing was sent, try again later',
      null,
    ),
  );
}
if (here && row.digest !== null && row.digest !== job.digest) {
  return answer(
    failure(
      409,
      'key_conflict',
      `this Idempotency-Key belongs to job ${row.prompt_id}, which has another workflow: use a new key`,
      row,
      { state: row.state, recorded: true },
    ),
  );
}
if (here && ENDS.includes(row.state)) {
  return answer(
    answerOf({ ...job, ...row }, recordOf(row), {
      recorded: true,
      ...(row.state === 'succeeded' ? { replayed: true } : {}),
      ...(row.state === 'succeeded' ? {} : { alarm: false }),
    }),
  );
}
if (here && row.server !== job.server) {
  return answer(
    failure(
      409,
      'key_conflict',
      `this Idempotency-Key belongs to job ${row.prompt_id} on ${row.server}: ask there, or use a new key`,
      row,
      { state: row.state, recorded: true },
    ),
  );
}
if (here && !row.mine && !job.wait) return answer(running({ ...job, ...row }, row.state, true));
if (here && !row.mine) return next('follow', { state: row.state, sent: row.sent ? 'yes' : 'maybe', wait_seconds: 1 });
return next('send');
