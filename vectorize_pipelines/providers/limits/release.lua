-- Ends a loan and notes what became of the call. Returns 1 where this disabled the key. Times are microseconds of the
-- server's clock. KEYS: as in acquire.lua; there are further hashes by key: failures, limited (answers 429),
-- latest_limited (time of the latest one that counts), limited_in_a_row. ARGV: salt, id of the key, lease, tokens that
-- were expected, the outcome as JSON.
local prefix = string.sub(KEYS[1], 1, -5) -- without `salt`
local id, lease = ARGV[2], ARGV[3]
local expected, outcome = tonumber(ARGV[4]), cjson.decode(ARGV[5])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end -- the state was begun again: it knows of no loan
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local uses = prefix .. 'uses:' .. id

redis.call('ZREM', prefix .. 'leases:' .. id, lease)
redis.call('DEL', prefix .. 'loan:' .. lease)
local use = lease .. ':' .. expected
local began = redis.call('ZSCORE', uses, use)
if outcome.unused then
  if began then
    redis.call('ZREM', uses, use)
    redis.call('HINCRBY', prefix .. 'calls', id, -1)
    if expected > 0 then redis.call('HINCRBY', prefix .. 'tokens', id, -expected) end
  end
  return 0
end
if began and outcome.tokens and outcome.tokens ~= expected then
  redis.call('ZADD', uses, began, lease .. ':' .. outcome.tokens)
  redis.call('ZREM', uses, use) -- afterwards: a set that is empty forgets when it expires
  redis.call('HINCRBY', prefix .. 'tokens', id, outcome.tokens - expected)
end

if outcome.cancelled then return 0 end

local provider = prefix .. 'provider:' .. outcome.provider
if outcome.failed then
  redis.call('HINCRBY', provider, 'failures', 1)
  redis.call('HINCRBY', provider, 'in_a_row', 1)
  redis.call('HSET', provider, 'latest', outcome.failed)
  return 0
end
redis.call('HDEL', provider, 'in_a_row') -- it answers, whatever it says

local latest = redis.call('HGET', prefix .. 'latest_limited', id) -- 429
local later = not latest or (began and tonumber(began) >= tonumber(latest))
if outcome.success then
  if latest and later then redis.call('HDEL', prefix .. 'latest_limited', id) redis.call('HDEL', prefix .. 'limited_in_a_row', id) end
  return 0
end
redis.call('HINCRBY', prefix .. 'failures', id, 1)
if outcome.pause then
  redis.call('HINCRBY', prefix .. 'limited', id, 1)
  -- Calls that were under way together are answered together: one refusal.
  local row = later and redis.call('HINCRBY', prefix .. 'limited_in_a_row', id, 1) or tonumber(redis.call('HGET', prefix .. 'limited_in_a_row', id) or 1)
  local pause = outcome.pause.asked or outcome.pause.default * 2 ^ (row - 1)
  local ends = now + math.min(pause, outcome.pause.most)
  if ends > tonumber(redis.call('HGET', prefix .. 'cooling', id) or 0) then redis.call('HSET', prefix .. 'cooling', id, ends) end
  redis.call('HSET', prefix .. 'latest_limited', id, now)
elseif outcome.refused then
  return redis.call('HSETNX', prefix .. 'disabled', id, outcome.refused)
end
return 0
