-- Returns the use of keys, as JSON. Changes nothing. KEYS: as in acquire.lua. ARGV: salt, length of the long window, ids
-- of keys and their limits as in acquire.lua.
local id_length, limits_length = 32, 48
local prefix = string.sub(KEYS[1], 1, -5) -- without `salt`
local long, all_ids, all_limits = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local salt = redis.call('GET', KEYS[1])
if salt and salt ~= ARGV[1] then return {'salt', salt} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function since(start) return string.format('(%.0f', start) end

local function ripe(uses, limit, window)
  if limit < 0 then return 0 end
  local nth = redis.call('ZREVRANGE', uses, limit - 1, limit - 1, 'WITHSCORES')
  return nth[2] and nth[2] + window or 0
end

local function tokens_ripe(uses, tokens, limit) -- when one more token fits
  if limit < 0 or tokens < limit then return 0 end
  for i = 1, #uses, 2 do
    tokens = tokens - tonumber(string.match(uses[i], '%d+$'))
    if tokens < limit then return uses[i + 1] + long end
  end
  return now
end

local function field(name, id) return tonumber(redis.call('HGET', prefix .. name, id) or 0) end

local found = {}
for i = 1, #all_ids / id_length do
  local id = string.sub(all_ids, (i - 1) * id_length + 1, i * id_length)
  local _, qps, rpm, tpm, concurrency, second = struct.unpack('>dddddd', all_limits, (i - 1) * limits_length + 1)
  local uses, leases = prefix .. 'uses:' .. id, prefix .. 'leases:' .. id
  local in_use = redis.call('ZCOUNT', leases, since(now), '+inf')
  local recent = redis.call('ZRANGEBYSCORE', uses, since(now - long), '+inf', 'WITHSCORES')
  local tokens, cooling = 0, field('cooling', id)
  for j = 1, #recent, 2 do tokens = tokens + tonumber(string.match(recent[j], '%d+$')) end
  local at = math.max(
    cooling, ripe(uses, qps, second), ripe(uses, rpm, long), tokens_ripe(recent, tokens, tpm), now
  )
  if concurrency >= 0 and in_use >= concurrency then
    at = math.max(at, redis.call('ZRANGEBYSCORE', leases, since(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  end
  found[i] = cjson.encode({
    disabled = redis.call('HGET', prefix .. 'disabled', id) or cjson.null,
    cooling = math.max(cooling - now, 0),
    in_use = in_use,
    requests_second = redis.call('ZCOUNT', uses, since(now - second), '+inf'),
    requests_minute = #recent / 2,
    tokens_minute = tokens,
    next_available = at - now,
    calls = field('calls', id),
    failures = field('failures', id),
    rate_limited = field('limited', id),
  })
end
return {'use', unpack(found)}
