-- Lends one key within all of its limits, or takes a place in the queue. Times are microseconds of the server's clock.
-- KEYS: 1 salt, 2 counter of tickets and turns, 3 disabled keys, 4 queue. Of a key: <prefix>key:ID (hash),
-- <prefix>uses:ID (calls of the last minute, `lease:tokens` by time), <prefix>leases:ID (loans by their end).
local spec, strategy, prefix = cjson.decode(ARGV[2]), ARGV[3], ARGV[4]
local need, lease, ticket = tonumber(ARGV[5]), ARGV[6], ARGV[8]
local lease_time, long = tonumber(ARGV[7]), tonumber(ARGV[9])
local longest, unknown, grace = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])

local salt = redis.call('GET', KEYS[1])
if not salt then
  redis.call('SET', KEYS[1], ARGV[1])
elseif salt ~= ARGV[1] then
  return {'salt', salt}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Callers that have waited for longer, and want keys that this one wants. Those that ask no more are forgotten.
local older, number, most, queue = 0, nil, need, {}
if redis.call('HLEN', KEYS[4]) > 0 then
  local waiting = redis.call('HGETALL', KEYS[4])
  for i = 1, #waiting, 2 do
    local place = cmsgpack.unpack(waiting[i + 1]) -- number, until, tokens, ids
    if waiting[i] == ticket then
      number = place[1]
    elseif place[2] < now then
      redis.call('HDEL', KEYS[4], waiting[i])
    else
      queue[#queue + 1] = place
    end
  end
  for _, place in ipairs(queue) do
    if not number or place[1] < number then
      for _, key in ipairs(spec) do
        if string.find(place[4], key[1], 1, true) then
          older = older + 1
          most = math.max(most, place[3])
          break
        end
      end
    end
  end
end

local function forget_old_uses(key, state)
  local uses = prefix .. 'uses:' .. key[1]
  local old = redis.call('ZRANGEBYSCORE', uses, '-inf', now - long)
  if #old > 0 then
    local tokens = 0
    for _, member in ipairs(old) do
      tokens = tokens + tonumber(string.match(member, '%d+$'))
    end
    redis.call('ZREMRANGEBYSCORE', uses, '-inf', now - long)
    if tokens > 0 then
      state.tokens = redis.call('HINCRBY', prefix .. 'key:' .. key[1], 'tokens', -tokens)
    end
  end
end

-- The use that has to grow old before one more fits into a window with this limit.
local function ripe(key, limit, window)
  if limit < 0 then return 0 end
  local nth = redis.call('ZREVRANGE', prefix .. 'uses:' .. key[1], limit - 1, limit - 1, 'WITHSCORES')
  return nth[2] and nth[2] + window or 0
end

local function tokens_ripe(key, state)
  if key[4] < 0 or state.tokens + most <= key[4] then return 0 end
  local freed, start = 0, 0
  repeat
    local uses = redis.call('ZRANGE', prefix .. 'uses:' .. key[1], start, start + 99, 'WITHSCORES')
    for i = 1, #uses, 2 do
      freed = freed + tonumber(string.match(uses[i], '%d+$'))
      if state.tokens - freed + most <= key[4] then return uses[i + 1] + long end
    end
    start = start + 100
  until #uses == 0
  return now + long
end

local for_release = false
local function free_at(key, state)
  forget_old_uses(key, state)
  local at = math.max(state.cooling, ripe(key, key[2], key[7]), ripe(key, key[3], long), tokens_ripe(key, state))
  if key[5] >= 0 and state.in_use >= key[5] then
    for_release = true
    at = math.max(at, now + unknown)
  end
  return at
end

local function room(key, state) -- calls that the key could take at once
  local uses, room = prefix .. 'uses:' .. key[1], 1000000
  if key[5] >= 0 then room = math.min(room, key[5] - state.in_use) end
  if key[2] >= 0 then room = math.min(room, key[2] - redis.call('ZCOUNT', uses, string.format('(%.0f', now - key[7]), '+inf')) end
  if key[3] >= 0 then room = math.min(room, key[3] - redis.call('ZCARD', uses)) end
  if key[4] >= 0 and most > 0 then room = math.min(room, math.floor((key[4] - state.tokens) / most)) end
  return room
end

local candidates, ids = {}, {}
for i, key in ipairs(spec) do ids[i] = key[1] end
local disabled = redis.call('HMGET', KEYS[3], unpack(ids))
for i, key in ipairs(spec) do
  if not disabled[i] then
    local found = redis.call('HMGET', prefix .. 'key:' .. key[1], 'cooling', 'turn', 'tokens')
    local state = {cooling = tonumber(found[1] or 0), turn = tonumber(found[2] or 0), tokens = tonumber(found[3] or 0)}
    if key[5] >= 0 or strategy == 'least_loaded' then
      local leases = prefix .. 'leases:' .. key[1]
      redis.call('ZREMRANGEBYSCORE', leases, '-inf', now)
      state.in_use = redis.call('ZCARD', leases)
    end
    state.rank = strategy == 'priority' and -key[6] or strategy == 'least_loaded' and state.in_use or 0
    candidates[#candidates + 1] = {key, state}
  end
end
table.sort(candidates, function(a, b)
  if a[2].rank ~= b[2].rank then return a[2].rank < b[2].rank end
  return a[2].turn < b[2].turn
end)

local free, chosen, times = 0, nil, {}
for _, each in ipairs(candidates) do
  local at = free_at(each[1], each[2])
  if at <= now then
    chosen = chosen or each
    free = free + (older == 0 and 1 or room(each[1], each[2]))
    if free > older then break end
  else
    times[#times + 1] = at
  end
end

if free > older then
  local id = chosen[1][1]
  redis.call('ZADD', prefix .. 'uses:' .. id, now, lease .. ':' .. need)
  redis.call('PEXPIRE', prefix .. 'uses:' .. id, math.ceil(long / 500))
  redis.call('ZADD', prefix .. 'leases:' .. id, now + lease_time, lease)
  redis.call('PEXPIRE', prefix .. 'leases:' .. id, math.ceil(lease_time / 500))
  redis.call('HSET', prefix .. 'key:' .. id, 'turn', redis.call('INCR', KEYS[2]))
  redis.call('HINCRBY', prefix .. 'key:' .. id, 'calls', 1)
  if need > 0 then redis.call('HINCRBY', prefix .. 'key:' .. id, 'tokens', need) end
  if number then redis.call('HDEL', KEYS[4], ticket) end
  return {'key', id}
end

if #candidates == 0 then
  if number then redis.call('HDEL', KEYS[4], ticket) end
  return {'none'}
end
table.sort(times)
local at = free > 0 and now or times[1]
local turn = older - free + 1 -- as many keys have to become free
local pause = free > 0 and unknown or math.min(math.max(times[math.min(turn, #times)] - now, 500), longest)
number = number or redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[4], ticket, cmsgpack.pack({number, now + pause + grace, need, table.concat(ids, ',')}))
return {'wait', pause, math.max(at - now, 0), for_release and 1 or 0}
