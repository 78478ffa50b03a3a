-- Returns the use of keys, as JSON. KEYS: 1 salt, 2 counter, 3 disabled keys.
local spec, prefix, long = cjson.decode(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local salt = redis.call('GET', KEYS[1])
if salt and salt ~= ARGV[1] then return {'salt', salt} end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function ripe(uses, limit, window)
  if limit < 0 then return 0 end
  local nth = redis.call('ZREVRANGE', uses, limit - 1, limit - 1, 'WITHSCORES')
  return nth[2] and nth[2] + window or 0
end

local found = {}
for _, key in ipairs(spec) do
  local state = redis.call('HMGET', prefix .. 'key:' .. key[1], 'cooling', 'calls', 'failures', 'limited')
  local uses, leases = prefix .. 'uses:' .. key[1], prefix .. 'leases:' .. key[1]
  local in_use = redis.call('ZCOUNT', leases, string.format('(%.0f', now), '+inf')
  local recent = redis.call('ZRANGEBYSCORE', uses, string.format('(%.0f', now - long), '+inf', 'WITHSCORES')
  local tokens, ripe_tokens = 0, 0
  for i = 1, #recent, 2 do tokens = tokens + tonumber(string.match(recent[i], '%d+$')) end
  if key[4] >= 0 and tokens >= key[4] then
    local freed = 0
    for i = 1, #recent, 2 do
      freed = freed + tonumber(string.match(recent[i], '%d+$'))
      if tokens - freed < key[4] then
        ripe_tokens = recent[i + 1] + long
        break
      end
    end
  end
  local cooling = tonumber(state[1] or 0)
  local at = math.max(cooling, ripe(uses, key[2], key[7]), ripe(uses, key[3], long), ripe_tokens, now)
  if key[5] >= 0 and in_use >= key[5] then
    local first = redis.call('ZRANGEBYSCORE', leases, string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    at = math.max(at, tonumber(first[2]))
  end
  found[#found + 1] = cjson.encode({
    disabled = redis.call('HGET', KEYS[3], key[1]) or cjson.null,
    cooling = math.max(cooling - now, 0),
    in_use = in_use,
    requests_second = redis.call('ZCOUNT', uses, string.format('(%.0f', now - key[7]), '+inf'),
    requests_minute = #recent / 2,
    tokens_minute = tokens,
    next_available = at - now,
    calls = tonumber(state[2] or 0),
    failures = tonumber(state[3] or 0),
    rate_limited = tonumber(state[4] or 0),
  })
end
return {'use', unpack(found)}
