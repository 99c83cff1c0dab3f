-- Words that every script of the store speaks. Loaded in front of each of them; replies nothing itself.
-- Keys: rt:job:ID hash · rt:jobs and rt:state:STATE zsets by time of creation · rt:leases and rt:suspects zsets by the
-- time at which they run out · rt:dependents:ID set · rt:idempotency:KEY string · rt:events:ID and rt:logs:ID streams.

local EVENTS_KEPT = 20000

local function clock()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function seconds(value)
  return string.format('%.6f', value)
end

local function job_key(id)
  return 'rt:job:' .. id
end

local function get(id, field)
  return redis.call('HGET', job_key(id), field) or ''
end

local function exists(id)
  return redis.call('EXISTS', job_key(id)) == 1
end

-- True where the caller is the present owner: fence and claim id are those that its claim returned.
local function owns(id, fence, claim_id)
  local state = get(id, 'state')
  return claim_id ~= '' and (state == 'RUNNING' or state == 'SUSPECT')
    and get(id, 'fence') == fence and get(id, 'claim_id') == claim_id
end

-- True where the caller was the owner and gave the job up by itself, in a call whose reply it may not have seen.
local function released(id, fence, claim_id)
  return claim_id ~= '' and get(id, 'released') == fence .. ':' .. claim_id
end

-- Tells those who follow the job, in its own stream of events.
local function tell(id, time)
  local event = cjson.encode({
    event = 'state', state = get(id, 'state'), cause = get(id, 'cause'), reason = get(id, 'reason'),
    worker = get(id, 'worker'), time = time,
  })
  redis.call('XADD', 'rt:events:' .. id, 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', event, 'attempt', get(id, 'attempt'))
end

-- The only way a state changes: hash, index and leases move together.
local function move(id, state, time, cause, reason)
  local before = get(id, 'state')
  redis.call('ZREM', 'rt:state:' .. before, id)
  redis.call('ZADD', 'rt:state:' .. state, get(id, 'created_at'), id)
  redis.call('HSET', job_key(id), 'state', state, 'cause', cause, 'reason', reason)
  if state ~= 'RUNNING' then redis.call('ZREM', 'rt:leases', id) end
  if state ~= 'SUSPECT' then redis.call('ZREM', 'rt:suspects', id) end
  tell(id, time)
end

-- Takes the job from its owner; what the owner sends from now on is refused. By its own will, or by ours.
local function release(id, own_will)
  local mark = ''
  if own_will then mark = get(id, 'fence') .. ':' .. get(id, 'claim_id') end
  redis.call('HSET', job_key(id), 'released', mark, 'claim_id', '')
end

local finish_dependents

-- Ends the job and settles those that wait for it.
local function settle(id, state, time, cause, reason)
  redis.call('HSET', job_key(id), 'finished_at', seconds(time), 'desired', 'RUN')
  move(id, state, time, cause, reason)
  finish_dependents(id, state, time)
end

local function set_aside(id, time, reason)
  redis.call('HSET', job_key(id), 'desired', 'RUN')
  move(id, 'PAUSED', time, '', reason)
end

local function queue(id, time, cause, reason)
  redis.call('HSET', job_key(id), 'queued_at', seconds(time), 'desired', 'RUN', 'finished_at', '0')
  move(id, 'QUEUED', time, cause, reason)
end

-- Puts the job where its dependency allows: QUEUED, WAITING, or at once FAILED.
local function place(id, time, cause, reason)
  local needed = get(id, 'depends_on')
  local state = needed ~= '' and get(needed, 'state') or 'SUCCEEDED'
  if state == 'SUCCEEDED' then
    queue(id, time, cause, reason)
  elseif state == 'FAILED' or state == 'CANCELLED' then
    settle(id, 'FAILED', time, 'dependency_failed', 'Job ' .. needed .. ', which this one needs, is ' .. state .. '.')
  else
    redis.call('HSET', job_key(id), 'desired', 'RUN', 'finished_at', '0')
    move(id, 'WAITING', time, '', 'Waits for job ' .. needed .. '.')
  end
end

finish_dependents = function(id, state, time)
  for _, dependent in ipairs(redis.call('SMEMBERS', 'rt:dependents:' .. id)) do
    if get(dependent, 'state') == 'WAITING' then place(dependent, time, '', '') end
  end
end

-- A new attempt under a new fence: tickets and claims of the one before are stale.
local function begin_attempt(id)
  redis.call('HINCRBY', job_key(id), 'attempt', 1)
  redis.call('HINCRBY', job_key(id), 'fence', 1)
  redis.call('HSET', job_key(id), 'not_before', '0', 'started_at', '0')
end

local function ticket(id)
  return { id, get(id, 'attempt'), get(id, 'queue'), get(id, 'priority') }
end

-- Tickets of those that waited for the job and are QUEUED now.
local function tickets_of_dependents(id)
  local tickets = {}
  for _, dependent in ipairs(redis.call('SMEMBERS', 'rt:dependents:' .. id)) do
    if get(dependent, 'state') == 'QUEUED' then table.insert(tickets, ticket(dependent)) end
  end
  return tickets
end
