// The AI SDK against a server: node ai_sdk.mjs BASE_URL FOLDER_WITH_NODE_MODULES
// The server offers the models m (text), caller (one tool call), slow, thinker (reasoning) and
// json (an object). Prints one line per promise kept; the exit status is 1 after the first broken.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'

const [base, folder] = process.argv.slice(2)
const require = createRequire(folder + '/')
const load = (name) => import(pathToFileURL(require.resolve(name)))
const { generateText, streamText, embedMany, tool, jsonSchema, Output, APICallError } =
  await load('ai')
const { createOpenAI } = await load('@ai-sdk/openai')
const { createOpenAICompatible } = await load('@ai-sdk/openai-compatible')

const openai = createOpenAI({ baseURL: base, apiKey: 'x' })
const compatible = createOpenAICompatible({
  name: 'llamoot',
  baseURL: base,
  includeUsage: true,
  supportsStructuredOutputs: true,
})
const ways = {
  responses: (name) => openai(name),
  chat: (name) => openai.chat(name),
  compatible: (name) => compatible(name),
}
const add = tool({
  description: 'adds',
  inputSchema: jsonSchema({ type: 'object', properties: { a: { type: 'number' } } }),
})
const schema = jsonSchema({
  type: 'object',
  properties: { x: { type: 'number' } },
  required: ['x'],
  additionalProperties: false,
})
const quiet = { maxRetries: 0, prompt: 'hi' }

for (const [way, model] of Object.entries(ways)) {
  const text = await generateText({ model: model('m'), ...quiet })
  assert.equal(text.text, 'Good morning, world.')
  assert.equal(text.finishReason, 'stop')
  assert.ok(text.usage.inputTokens > 0 && text.usage.outputTokens > 0)
  console.log(way, 'text')

  const stream = streamText({ model: model('m'), ...quiet, onError: ({ error }) => { throw error } })
  let parts = []
  for await (const part of stream.textStream) parts.push(part)
  assert.equal(parts.join(''), 'Good morning, world.')
  assert.ok(parts.length > 1)
  assert.ok((await stream.usage).outputTokens > 0)
  assert.equal(await stream.finishReason, 'stop')
  console.log(way, 'stream')

  const called = await generateText({ model: model('caller'), ...quiet, tools: { add } })
  assert.equal(called.finishReason, 'tool-calls')
  assert.deepEqual(called.toolCalls[0].input, { a: 1 })
  const calling = streamText({ model: model('caller'), ...quiet, tools: { add } })
  assert.deepEqual((await calling.toolCalls)[0].input, { a: 1 })
  console.log(way, 'tools')

  const made = await generateText({ model: model('json'), ...quiet, output: Output.object({ schema }) })
  assert.deepEqual(made.output, { x: 1 })
  console.log(way, 'schema')

  const thought = await generateText({ model: model('thinker'), ...quiet })
  assert.equal(thought.text, '42')
  console.log(way, 'reasoning', JSON.stringify(thought.reasoningText ?? ''))

  await assert.rejects(
    generateText({ model: model('none'), ...quiet }),
    (error) => APICallError.isInstance(error) && error.statusCode === 404 && /none/.test(error.message),
  )
  const failing = streamText({ model: model('broken'), ...quiet, onError: () => {} })
  const kinds = []
  for await (const part of failing.fullStream) kinds.push(part.type)
  assert.ok(kinds.includes('error'), kinds.join())
  console.log(way, 'errors')

  const stop = new AbortController()
  const slow = streamText({ model: model('slow'), ...quiet, abortSignal: stop.signal, onError: () => {} })
  for await (const part of slow.fullStream) {
    if (part.type === 'text-delta') stop.abort()
    if (part.type === 'abort') break
  }
  console.log(way, 'abort')
}

for (const model of [openai.embedding('m'), compatible.embeddingModel('m')]) {
  const { embeddings } = await embedMany({ model, values: ['a', 'b'] })
  assert.deepEqual(embeddings, [[1, 0, 0], [1, 0, 1]])
}
console.log('embeddings')
