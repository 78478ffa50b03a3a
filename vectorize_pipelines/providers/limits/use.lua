-- Returns the use of keys, as JSON. Changes nothing. KEYS: as in release.lua. ARGV: salt, prefix, length of the long
-- window, number of keys, their ids, as many limits.
local arguments, prefix, long, count = 4, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
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

local function field(number, id) return tonumber(redis.call('HGET', KEYS[number], id) or 0) end

local found = {}
for i = 1, count do
  local id = ARGV[arguments + i]
  local _, qps, rpm, tpm, concurrency, second = struct.unpack('>dddddd', ARGV[arguments + count + i])
  local uses, leases = prefix .. 'uses:' .. id, prefix .. 'leases:' .. id
  local in_use = redis.call('ZCOUNT', leases, since(now), '+inf')
  local recent = redis.call('ZRANGEBYSCORE', uses, since(now - long), '+inf', 'WITHSCORES')
  local tokens, cooling = 0, field(5, id)
  for j = 1, #recent, 2 do tokens = tokens + tonumber(string.match(recent[j], '%d+$')) end
  local at = math.max(
    cooling, ripe(uses, qps, second), ripe(uses, rpm, long), tokens_ripe(recent, tokens, tpm), now
  )
  if concurrency >= 0 and in_use >= concurrency then
    at = math.max(at, redis.call('ZRANGEBYSCORE', leases, since(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  end
  found[i] = cjson.encode({
    disabled = redis.call('HGET', KEYS[4], id) or cjson.null,
    cooling = math.max(cooling - now, 0),
    in_use = in_use,
    requests_second = redis.call('ZCOUNT', uses, since(now - second), '+inf'),
    requests_minute = #recent / 2,
    tokens_minute = tokens,
    next_available = at - now,
    calls = field(8, id),
    failures = field(9, id),
    rate_limited = field(10, id),
  })
end
return {'use', unpack(found)}
