-- Disables keys for a reason, or enables them where the reason is empty. KEYS: as in release.lua. ARGV: salt, reason,
-- only (enable those that are disabled for this reason; empty: all), ids.
local reason, only = ARGV[2], ARGV[3]
local salt = redis.call('GET', KEYS[1])
if salt and salt ~= ARGV[1] then return {'salt', salt} end
for i = 4, #ARGV do
  local id = ARGV[i]
  if reason ~= '' then
    redis.call('HSET', KEYS[4], id, reason)
  elseif only == '' or redis.call('HGET', KEYS[4], id) == only then
    for _, field in ipairs({KEYS[4], KEYS[5], KEYS[11], KEYS[12]}) do redis.call('HDEL', field, id) end
  end
end
return {'done'}
