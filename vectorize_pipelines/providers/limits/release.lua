-- Ends a loan and notes what became of the call. Returns 1 where this disabled the key.
-- KEYS: 1 salt, 2 counter, 3 disabled keys. Times are microseconds of the server's clock.
local id, lease, prefix = ARGV[2], ARGV[3], ARGV[4]
local expected, outcome = tonumber(ARGV[5]), cjson.decode(ARGV[6])
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end -- the state was begun again: it knows of no loan
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state, uses = prefix .. 'key:' .. id, prefix .. 'uses:' .. id

redis.call('ZREM', prefix .. 'leases:' .. id, lease)
local member = lease .. ':' .. expected
local began = tonumber(redis.call('ZSCORE', uses, member) or nil)
if outcome.unused then
  if began then
    redis.call('ZREM', uses, member)
    redis.call('HINCRBY', state, 'calls', -1)
    if expected > 0 then redis.call('HINCRBY', state, 'tokens', -expected) end
  end
  return 0
end
if began and outcome.tokens and outcome.tokens ~= expected then
  redis.call('ZREM', uses, member)
  redis.call('ZADD', uses, began, lease .. ':' .. outcome.tokens)
  redis.call('HINCRBY', state, 'tokens', outcome.tokens - expected)
end

local provider = prefix .. 'provider:' .. outcome.provider
if outcome.failed then
  redis.call('HINCRBY', provider, 'failures', 1)
  redis.call('HINCRBY', provider, 'in_a_row', 1)
  redis.call('HSET', provider, 'latest', outcome.failed)
  return 0
end
redis.call('HDEL', provider, 'in_a_row') -- it answers, whatever it says

local cooled = redis.call('HGET', state, 'cooled')
local later = not cooled or (began and began >= tonumber(cooled)) -- than the latest 429
if outcome.success then
  if cooled and later then redis.call('HDEL', state, 'streak', 'cooled') end
  return 0
end
redis.call('HINCRBY', state, 'failures', 1)
if outcome.pause then
  redis.call('HINCRBY', state, 'limited', 1)
  -- Calls that were under way together are answered together: one refusal.
  local streak = later and redis.call('HINCRBY', state, 'streak', 1) or tonumber(redis.call('HGET', state, 'streak') or 1)
  local pause = outcome.pause.asked or outcome.pause.default * 2 ^ (streak - 1)
  local until_ = now + math.min(pause, outcome.pause.most)
  if until_ > tonumber(redis.call('HGET', state, 'cooling') or 0) then
    redis.call('HSET', state, 'cooling', until_)
  end
  redis.call('HSET', state, 'cooled', now)
elseif outcome.refused then
  return redis.call('HSETNX', KEYS[3], id, outcome.refused)
end
return 0
