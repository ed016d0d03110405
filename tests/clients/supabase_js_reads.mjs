// supabase-js asks the match function with the JavaScript of docs/, as it stands there and in other ways.
//
// Arguments: the directory of its packages, and a folder of documentation. SUPABASE_URL is where it asks, QUESTION the vector of
// 'Cats sleep for most of the day.'

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'

const [packages, docs] = process.argv.slice(2)
const { createClient } = createRequire(`${packages}/`)('@supabase/supabase-js')
const embedding = JSON.parse(process.env.QUESTION)

/** A client with a key of this role. It opens no WebSocket, and needs none of a Node that has none. */
function client(role) {
  const part = (content) => Buffer.from(JSON.stringify(content)).toString('base64url')
  const key = `${part({ alg: 'none' })}.${part({ role })}.`
  return createClient(process.env.SUPABASE_URL, key, { realtime: { transport: class {} } })
}

/** The blocks of JavaScript of a file, each as a function of what it takes for granted. */
function blocks(file) {
  const found = readFileSync(join(docs, file), 'utf8').matchAll(/^```js\n(.*?)^```$/gms)
  const AsyncFunction = (async () => {}).constructor
  return [...found].map(([, code]) => new AsyncFunction('supabase', 'embedding', `${code}; return { data, error }`))
}

const files = readdirSync(docs).filter((file) => file.endsWith('.md'))
const documented = files.flatMap((file) => blocks(file).map((run) => ({ file, run })))
const [cats, keys] = ['Cats sleep for most of the day.', 'Rotate a key by making a new one first.']
const expected = { 'supabase.md': [cats], 'targets.md': [cats, keys] }
assert.deepEqual(documented.map(({ file }) => file).sort(), Object.keys(expected))

const reader = client('authenticated')
const stranger = client('anon')
for (const { file, run } of documented) {
  const { data, error } = await run(reader, embedding)
  assert.equal(error, null, file)
  assert.deepEqual(data.map((row) => row.content), expected[file], file)
  assert.deepEqual(Object.keys(data[0]).sort(), ['content', 'id', 'metadata', 'similarity'], file)
  assert.equal(data[0].metadata.lang, 'en', file)
  assert.ok(data[0].similarity > 0.999, `${file}: ${data[0].similarity}`)

  const refused = await run(stranger, embedding)
  assert.equal(refused.data, null, file)
  assert.equal(refused.error.code, '42501', file)
  assert.match(refused.error.message, /permission denied for table docs/, file)
}

const ask = (more) => reader.rpc('match_documents', { query_embedding: embedding, ...more })
for (const [query, count] of [
  [ask({}), 4],
  [ask({ match_count: 3 }), 3],
  [ask({ match_threshold: 0.99 }), 1],
  [ask({ match_count: 2, match_threshold: -1 }), 2],
  [ask({ filter: { lang: 'de' } }), 1],
  [ask({ filter: { lang: 'fr' } }), 0],
  [ask({}).limit(2), 2],
]) {
  const { data, error } = await query
  assert.equal(error, null)
  assert.equal(data.length, count)
}

const short = await reader.rpc('match_documents', { query_embedding: [1, 2, 3] })
assert.match(short.error.message, /dimensions/)
