// The body of POST /prompt, as text: numbers stay as they were written.
const job = $input.first().json;
const { graph } = $('Prepare job').first().json;
const body = { prompt: graph, prompt_id: job.prompt_id, client_id: job.client_id, extra_data: job.extra_data };
return [{ json: { ...job, posts: job.posts + 1, posted_at: Date.now(), payload: writeJson(body) } }];
