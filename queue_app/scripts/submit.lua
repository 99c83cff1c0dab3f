-- Creates jobs, all or none.
-- KEYS: none. ARGV: 1 JSON list of objects with the fields of NewJob, every value a string, "" for none.
-- Reply: { 'OK', the job id for each entry } or { 'MISSING', the id of the dependency that does not exist }.
-- Sent again: finds its own jobs by their ids.

local entries = cjson.decode(ARGV[1])
local time = clock()
local stands_for = {}
local ids = {}

local function known(entry)
  if exists(entry.id) then return entry.id end
  if entry.idempotency_key == '' then return nil end
  local id = redis.call('GET', 'rt:idempotency:' .. entry.idempotency_key)
  if not id or not exists(id) then return nil end
  local state = get(id, 'state')
  if state == 'FAILED' or state == 'CANCELLED' then return nil end
  return id
end

local taken = {}
for position, entry in ipairs(entries) do
  if entry.depends_on ~= '' and not stands_for[entry.depends_on] and not exists(entry.depends_on) then
    return { 'MISSING', entry.depends_on }
  end
  local id = known(entry) or taken[entry.idempotency_key] or entry.id
  if entry.idempotency_key ~= '' then taken[entry.idempotency_key] = id end
  stands_for[entry.id] = id
  ids[position] = id
end

for position, entry in ipairs(entries) do
  local id = ids[position]
  if id == entry.id and not exists(id) then
    for field, value in pairs(entry) do redis.call('HSET', job_key(id), field, value) end
    local created = seconds(time + position * 0.000001)
    redis.call('HSET', job_key(id), 'created_at', created, 'attempt', 1, 'fence', 1)
    redis.call('ZADD', 'rt:jobs', created, id)
    if entry.idempotency_key ~= '' then redis.call('SET', 'rt:idempotency:' .. entry.idempotency_key, id) end
    if entry.depends_on ~= '' then
      local needed = stands_for[entry.depends_on] or entry.depends_on
      redis.call('HSET', job_key(id), 'depends_on', needed)
      redis.call('SADD', 'rt:dependents:' .. needed, id)
    end
    place(id, time, '', '')
  end
end

table.insert(ids, 1, 'OK')
return ids
