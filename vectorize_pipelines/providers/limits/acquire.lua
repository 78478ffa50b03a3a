-- Lends one key within all of its limits, or takes a place in the queue. Times are microseconds of the server's clock.
-- KEYS: the salt; everything else lies under the same prefix and thus on the same node of a cluster. Hashes by key:
-- disabled (reasons), cooling (its end), turn (of the latest loan), tokens (of the last minute), calls. Of one key: uses:ID
-- (calls of the last minute, `lease:tokens` by time), leases:ID (loans by their end). `loan:LEASE`: key and time of a loan
-- until its end. `queue`: places by ticket.
-- ARGV: salt, strategy, tokens, lease, ticket, times, ids of the keys, their limits. Many numbers stand in one argument:
-- packing many arguments takes the client longer than all of this takes the server.
local id_length, limits_length = 32, 48
local spare_ms = 10000 -- what is not used any more is removed later than it counts by this
local prefix = string.sub(KEYS[1], 1, -5) -- without `salt`
local strategy, need, lease, ticket, all_ids, all_limits = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[7], ARGV[8]
local lease_time, long, longest, unknown, grace, ahead = struct.unpack('>dddddd', ARGV[6])

local salt = redis.call('GET', KEYS[1])
if not salt then -- the state was lost: it knows of no key that the file disables
  redis.call('SET', KEYS[1], ARGV[1])
  return {'salt', ARGV[1]}
elseif salt ~= ARGV[1] then
  return {'salt', salt}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local loan = redis.call('GET', prefix .. 'loan:' .. lease)
if loan then -- the caller has not heard that it has a key, and asks once more
  local had = cmsgpack.unpack(loan)
  return {'key', had[1], now, had[2]}
end
local soon = now + ahead -- what has room by then is lent for then
local ids = {}
for i = 1, #all_ids / id_length do ids[i] = string.sub(all_ids, (i - 1) * id_length + 1, i * id_length) end

-- Callers that have waited for longer. Those that ask no more are forgotten.
local before, number = {}, nil
if redis.call('HLEN', prefix .. 'queue') > 0 then
  local waiting, queue = redis.call('HGETALL', prefix .. 'queue'), {}
  for i = 1, #waiting, 2 do
    local place = cmsgpack.unpack(waiting[i + 1]) -- number, until, tokens, ids
    if waiting[i] == ticket then
      number = place[1]
    elseif place[2] < now then
      redis.call('HDEL', prefix .. 'queue', waiting[i])
    else
      queue[#queue + 1] = place
    end
  end
  for _, place in ipairs(queue) do
    if not number or place[1] < number then
      before[#before + 1] = {tokens = place[3], ids = place[4]}
    end
  end
end

local older = 0 -- callers of `before` that could use one of the keys that have been looked at
local function look_at(key) -- reads the limits of a key, and forgets what is too old to count
  if key.uses then return end
  key.uses, key.leases = prefix .. 'uses:' .. key.id, prefix .. 'leases:' .. key.id
  key.priority, key.qps, key.rpm, key.tpm, key.concurrency, key.second =
    struct.unpack('>dddddd', all_limits, (key.place - 1) * limits_length + 1)
  key.older, key.most = 0, need
  for _, caller in ipairs(before) do
    if (key.tpm < 0 or caller.tokens <= key.tpm) and (caller.ids == all_ids or string.find(caller.ids, key.id, 1, true)) then
      key.older, key.most = key.older + 1, math.max(key.most, caller.tokens)
      if not caller.counts then older = older + 1 end
      caller.counts = true
    end
  end
  if key.concurrency >= 0 or strategy == 'least_loaded' then
    redis.call('ZREMRANGEBYSCORE', key.leases, '-inf', now)
    key.in_use = redis.call('ZCARD', key.leases)
  end
  local old = redis.call('ZRANGEBYSCORE', key.uses, '-inf', now - long)
  if #old > 0 then
    local tokens = 0
    for _, use in ipairs(old) do
      tokens = tokens + tonumber(string.match(use, '%d+$'))
    end
    redis.call('ZREMRANGEBYSCORE', key.uses, '-inf', now - long)
    if tokens > 0 then key.tokens = redis.call('HINCRBY', prefix .. 'tokens', key.id, -tokens) end
  end
  if key.tokens > 0 and redis.call('EXISTS', key.uses) == 0 then -- all of its calls are too old
    key.tokens = 0
    redis.call('HDEL', prefix .. 'tokens', key.id)
  end
end

local function ripe(key, limit, window) -- when the use grows old that has to, before one more fits into the window
  if limit < 0 then return 0 end
  local nth = redis.call('ZREVRANGE', key.uses, limit - 1, limit - 1, 'WITHSCORES')
  return nth[2] and nth[2] + window or 0
end

local function tokens_ripe(key)
  if key.tpm < 0 or key.tokens + key.most <= key.tpm then return 0 end
  local freed, start = 0, 0
  repeat
    local uses = redis.call('ZRANGE', key.uses, start, start + 99, 'WITHSCORES')
    for i = 1, #uses, 2 do
      freed = freed + tonumber(string.match(uses[i], '%d+$'))
      if key.tokens - freed + key.most <= key.tpm then return uses[i + 1] + long end
    end
    start = start + 100
  until #uses == 0
  return now + long
end

local for_release = false
local function free_at(key)
  local at = math.max(key.cooling, ripe(key, key.qps, key.second), ripe(key, key.rpm, long), tokens_ripe(key))
  if key.concurrency >= 0 and key.in_use >= key.concurrency then
    for_release = true
    at = math.max(at, soon + unknown)
  end
  return at
end

local function room(key) -- for how many calls there is, at once
  local room = key.older + 1
  if key.concurrency >= 0 then room = math.min(room, key.concurrency - key.in_use) end
  if key.rpm >= 0 then room = math.min(room, key.rpm - redis.call('ZCARD', key.uses)) end
  if key.tpm >= 0 and key.most > 0 then room = math.min(room, math.floor((key.tpm - key.tokens) / key.most)) end
  if key.qps >= 0 then
    local recent = redis.call('ZCOUNT', key.uses, string.format('(%.0f', soon - key.second), '+inf')
    room = math.min(room, key.qps - recent)
  end
  return room
end

local disabled, cooling = redis.call('HMGET', prefix .. 'disabled', unpack(ids)), redis.call('HMGET', prefix .. 'cooling', unpack(ids))
local turns, tokens = redis.call('HMGET', prefix .. 'turn', unpack(ids)), redis.call('HMGET', prefix .. 'tokens', unpack(ids))
local keys = {}
for i = 1, #ids do
  if not disabled[i] then
    local key = {
      id = ids[i], place = i, rank = 0,
      cooling = tonumber(cooling[i] or 0), turn = tonumber(turns[i] or 0), tokens = tonumber(tokens[i] or 0),
    }
    if strategy ~= 'round_robin' then
      look_at(key)
      key.rank = strategy == 'priority' and -key.priority or key.in_use
    end
    keys[#keys + 1] = key
  end
end
local enabled = #keys

local function first() -- takes the first key, in the order of the strategy
  local best = 1
  for i = 2, #keys do
    local one, other = keys[i], keys[best]
    if one.rank < other.rank or one.rank == other.rank and one.turn < other.turn then best = i end
  end
  local key = keys[best]
  keys[best] = keys[#keys]
  keys[#keys] = nil
  return key
end

local free, chosen, later, has_room = 0, nil, {}, false
while #keys > 0 and not has_room do
  local key = first()
  look_at(key)
  local at = free_at(key)
  if at > soon then
    later[#later + 1] = at - ahead
  else
    key.at = math.max(at, now)
    if not chosen or key.older < chosen.older then chosen = key end
    if key.older > 0 then free = free + room(key) end
    has_room = key.older == 0 or free > older
  end
end

if has_room then
  local id = chosen.id
  redis.call('SET', prefix .. 'loan:' .. lease, cmsgpack.pack({id, chosen.at}), 'PX', math.ceil(lease_time / 1000))
  redis.call('ZADD', chosen.uses, chosen.at, lease .. ':' .. need)
  redis.call('PEXPIRE', chosen.uses, math.ceil(long / 1000) + spare_ms)
  redis.call('ZREMRANGEBYSCORE', chosen.leases, '-inf', now)
  redis.call('ZADD', chosen.leases, now + lease_time, lease)
  local lasts = math.ceil(lease_time / 1000) + spare_ms
  redis.call('PEXPIRE', chosen.leases, math.max(lasts, redis.call('PTTL', chosen.leases)))
  redis.call('HSET', prefix .. 'turn', id, redis.call('INCR', prefix .. 'counter'))
  redis.call('HINCRBY', prefix .. 'calls', id, 1)
  if need > 0 then redis.call('HINCRBY', prefix .. 'tokens', id, need) end
  if number then redis.call('HDEL', prefix .. 'queue', ticket) end
  return {'key', id, now, chosen.at}
end

if enabled == 0 then
  if number then redis.call('HDEL', prefix .. 'queue', ticket) end
  return {'none'}
end
table.sort(later)
local turn = math.min(older - free + 1, #later) -- as many keys have to become free
local pause = free > 0 and unknown or math.min(math.max(later[turn] - now, 500), longest)
number = number or redis.call('INCR', prefix .. 'counter')
redis.call('HSET', prefix .. 'queue', ticket, cmsgpack.pack({number, now + pause + grace, need, all_ids}))
return {'wait', pause, free > 0 and 0 or later[1] + ahead - now, for_release and 1 or 0}
